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
def exclusive_lock(out: str, what: str) -> Iterator[None]:
    """Holds the lock of a folder or the lease of a URI for this process.

    Args:
        out: folder or URI to lock; it must contain the folder for unfinished work.
        what: name of the operation, used in the error message of other processes.

    Raises:
        DataError: another process holds the lock or lease.
    """
    fs, root = filesystem(out)
    with _locked(Path(root), what) if isinstance(fs, LocalFileSystem) else _leased(fs, root, strip_credentials(out)):
        yield


@contextmanager
def _locked(root: Path, what: str) -> Iterator[None]:
    """Holds a file lock, which the kernel releases when the process ends for any reason."""
    with (root / UNFINISHED / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another {what} is writing {root}; wait for it, or choose another folder.") from error
        yield


@contextmanager
def _leased(fs: FileSystem, root: str, name: str) -> Iterator[None]:
    """Holds a lease on a folder of a bucket, as an object that a thread rewrites at a fixed interval.

    The age of a lease is measured with the clock of the bucket.
    """
    own = f"{root}/{UNFINISHED}/at-work-{socket.gethostname()}-{os.getpid()}"
    write_atomic(fs, own, b"")
    known = {info.path: info.mtime_ns for info in fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}"))}
    others = [path for path, time in known.items() if "/at-work-" in path and path != own]
    fresh = [Path(path).name for path in others if known[own] - known[path] < LEASE_TIMEOUT_S * 1e9]
    if fresh:
        fs.delete_file(own)
        raise DataError(
            f"{fresh[0].removeprefix('at-work-')} was writing {name} less than {LEASE_TIMEOUT_S:.0f} s ago; wait for "
            "it, or for that time if it is dead."
        )
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(LEASE_REFRESH_S):
            with suppress(OSError):  # the writes of the operation itself fail too and report the error
                write_atomic(fs, own, b"")

    thread = threading.Thread(target=refresh, name="segray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # a lease that remains expires after LEASE_TIMEOUT_S
            fs.delete_file(own)
