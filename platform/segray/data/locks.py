"""Exclusive write access to a dataset folder: a file lock on local disks, a lease object in buckets."""

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from segray.core.errors import DataError
from segray.data.storage import UNFINISHED, filesystem, guard_writes, strip_credentials

LEASE_REFRESH_S = 10.0
LEASE_VALID_S = 50.0
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


class Lease:
    """Lease on a folder of a bucket: an object that a thread rewrites at a fixed interval.

    The holder loses the lease if it cannot rewrite the object for `LEASE_VALID_S`, or if another process removes it.
    Other processes take the lease over only after the longer `LEASE_TIMEOUT_S`, so that no two of them write.

    Args:
        fs: filesystem of the bucket.
        path: path of the object.
        name: name of the folder, for messages.
    """

    def __init__(self, fs: FileSystem, path: str, name: str) -> None:
        self._fs, self._path, self._name = fs, path, name
        self._is_taken = False
        self._error: OSError | None = None
        self._write()

    def _write(self) -> None:
        started = monotonic()
        with self._fs.open_output_stream(self._path) as file:
            file.write(b"")
        self._refreshed, self._error = started, None

    def refresh(self) -> None:
        """Rewrites the object. An error is kept for `check`, because the bucket may be available again in time."""
        try:
            if self._fs.get_file_info(self._path).type is FileType.NotFound:
                self._is_taken = True
            if not self._is_taken:
                self._write()
        except OSError as error:
            self._error = error

    def check(self) -> None:
        """Checks that this process still holds the lease.

        Raises:
            DataError: the lease is lost; this process must not write.
        """
        reason = "another process has taken it over" if self._is_taken else None
        if reason is None and monotonic() - self._refreshed >= LEASE_VALID_S:
            reason = f"it was not renewed for {LEASE_VALID_S:.0f} s ({self._error or 'this process was suspended'})"
        if reason is not None:
            raise DataError(
                f"the lease on {self._name} is lost: {reason}; nothing more is written there. Run the same command "
                "again to resume, when no other process writes there."
            )


@contextmanager
def _lease(fs: FileSystem, root: str, name: str) -> Iterator[None]:
    """Holds a lease on a folder of a bucket, and lets this process write there only while it holds it.

    The age of a lease is measured with the clock of the bucket.
    """
    own = f"{root}/{UNFINISHED}/at-work-{socket.gethostname()}-{os.getpid()}"
    lease = Lease(fs, own, name)
    times_ns = {info.path: info.mtime_ns for info in fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}"))}
    others = [path for path in times_ns if "/at-work-" in path and path != own]
    active = [Path(path).name for path in others if times_ns[own] - times_ns[path] < LEASE_TIMEOUT_S * 1e9]
    if active:
        fs.delete_file(own)
        raise DataError(
            f"{active[0].removeprefix('at-work-')} wrote to {name} less than {LEASE_TIMEOUT_S:.0f} s ago; wait until "
            f"it ends, or {LEASE_TIMEOUT_S:.0f} s if it has died."
        )
    for path in others:  # expired: its holder, if it still lives, notices that the object is gone
        with suppress(OSError):  # its holder, or another process, has deleted it
            fs.delete_file(path)
    stop = threading.Event()

    def refresh() -> None:
        while not stop.wait(LEASE_REFRESH_S):
            lease.refresh()

    thread = threading.Thread(target=refresh, name="segray-lease", daemon=True)
    thread.start()
    try:
        with guard_writes(root, lease.check):
            yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):  # a lease that remains expires after LEASE_TIMEOUT_S
            fs.delete_file(own)
