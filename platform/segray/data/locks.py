"""Exclusive write access to a dataset folder: a file lock on local disks, a lease object in buckets."""

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem

from segray.core.errors import DataError
from segray.data.storage import UNFINISHED, filesystem, strip_credentials, write_atomic

LEASE_REFRESH_S = 10.0
LEASE_TIMEOUT_S = 60.0


@contextmanager
def exclusive_lock(out: str, operation: str) -> Iterator[None]:
    """Holds the lock of a folder or the lease of a URI for this process.

    Args:
        out: folder or URI to lock; it must contain the folder for unfinished work.
        operation: name of the operation, used in the error message of other processes.

    Raises:
        DataError: another process holds the lock or lease.
    """
    fs, root = filesystem(out)
    is_local = isinstance(fs, LocalFileSystem)
    with _file_lock(Path(root), operation) if is_local else _lease(fs, root, strip_credentials(out)):
        yield


@contextmanager
def _file_lock(root: Path, operation: str) -> Iterator[None]:
    """Holds a file lock, which the kernel releases when the process ends for any reason."""
    with (root / UNFINISHED / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another {operation} is writing {root}; wait until it ends, or choose another folder."
            ) from error
        yield


@contextmanager
def _lease(fs: FileSystem, root: str, name: str) -> Iterator[None]:
    """Holds a lease on a folder of a bucket, as an object that a thread rewrites at a fixed interval.

    The age of a lease is measured with the clock of the bucket.
    """
    own = f"{root}/{UNFINISHED}/at-work-{socket.gethostname()}-{os.getpid()}"
    write_atomic(fs, own, b"")
    times_ns = {info.path: info.mtime_ns for info in fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}"))}
    others = [path for path in times_ns if "/at-work-" in path and path != own]
    active = [Path(path).name for path in others if times_ns[own] - times_ns[path] < LEASE_TIMEOUT_S * 1e9]
    if active:
        fs.delete_file(own)
        raise DataError(
            f"{active[0].removeprefix('at-work-')} wrote to {name} less than {LEASE_TIMEOUT_S:.0f} s ago; wait until "
            f"it ends, or {LEASE_TIMEOUT_S:.0f} s if it has died."
        )
    stop = threading.Event()

    def refresh() -> None:
        while not stop.wait(LEASE_REFRESH_S):
            with suppress(OSError):  # the writes of the operation itself fail too and report the error
                write_atomic(fs, own, b"")

    thread = threading.Thread(target=refresh, name="segray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):  # a lease that remains expires after LEASE_TIMEOUT_S
            fs.delete_file(own)
