"""A folder or bucket that one process at a time writes: its lock or lease, and files that are whole or not there."""

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem

from segray.data.schema import UNFINISHED, advice, digest_of, filesystem, plain
from segray.errors import DataError

REFRESH_S = 10.0
STALE_S = 60.0
MOST_NAME = 240  # bytes


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Makes of what a store says while it is written an error that names it.

    Raises:
        DataError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"output {plain(out)} cannot be written ({error}){advice(out)}") from error


def write(fs: FileSystem, path: str, content: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    is_local = isinstance(fs, LocalFileSystem)
    partial = _partial(path) if is_local else path
    with fs.open_output_stream(partial) as file:
        file.write(content)
    if is_local:
        fs.move(partial, path)


def _partial(path: str) -> str:
    """Returns what a file is called until it is whole; a name may be as long as a file system takes."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{digest_of(name.encode()) if len(name.encode()) > MOST_NAME else name}.partial"


@contextmanager
def held(out: str, what: str) -> Iterator[None]:
    """Holds a folder or URI, in which there is a folder for what is not finished, for this process alone.

    Args:
        out: to be held.
        what: holds it, for the messages of others.

    Raises:
        DataError: another process holds it.
    """
    fs, root = filesystem(out)
    with _locked(Path(root), what) if isinstance(fs, LocalFileSystem) else _leased(fs, root, plain(out)):
        yield


@contextmanager
def _locked(root: Path, what: str) -> Iterator[None]:
    """Holds a lock that the kernel takes back, however the process ends."""
    with (root / UNFINISHED / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another {what} is writing {root}; wait for it, or choose another folder.") from error
        yield


@contextmanager
def _leased(fs: FileSystem, root: str, name: str) -> Iterator[None]:
    """Holds a bucket's folder by an object that is written anew again and again; its age is by the bucket's clock."""
    own = f"{root}/{UNFINISHED}/at-work-{socket.gethostname()}-{os.getpid()}"
    write(fs, own, b"")
    known = {info.path: info.mtime_ns for info in fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}"))}
    others = [path for path, time in known.items() if "/at-work-" in path and path != own]
    fresh = [Path(path).name for path in others if known[own] - known[path] < STALE_S * 1e9]
    if fresh:
        fs.delete_file(own)
        raise DataError(
            f"{fresh[0].removeprefix('at-work-')} was writing {name} less than {STALE_S:.0f} s ago; wait for it, or "
            "for that time if it is dead."
        )
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(REFRESH_S):
            with suppress(OSError):  # what the work itself writes meets it too, and says so
                write(fs, own, b"")

    thread = threading.Thread(target=refresh, name="segray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # whoever comes next finds it old soon
            fs.delete_file(own)
