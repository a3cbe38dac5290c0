"""A dataset that is being made: what is done of it, and who is at it.

It lies in the dataset's own folder, so that a folder and a bucket work alike: shards have their final names at once,
and `dataset.json`, without which there is no dataset, comes last.
"""

import fcntl
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from pydantic import TypeAdapter, ValidationError

from segray.data.schema import LEFT_OUT, MANIFEST, UNFINISHED, Manifest, advice, filesystem, place, plain
from segray.data.shards import Job, Outcome
from segray.errors import DataError

PROBLEMS = "problems.txt"
LISTS = (LEFT_OUT, PROBLEMS)
LEFTOVER = re.compile(rf"[^/]+/part-\d+(-\d+)?\.parquet(\.[0-9a-f]{{8}}\.partial)?|{LEFT_OUT}|{PROBLEMS}")
"""What an earlier try may have left, relative to the root."""
REFRESH_S = 10.0
STALE_S = 60.0


@dataclass(frozen=True)
class Record:
    """A job that is done: its digest and what came of it."""

    job: str
    outcome: Outcome


_RECORD = TypeAdapter(Record)


def done(job: Job) -> Outcome | None:
    """Returns what came of a job before, if its shards are still there."""
    fs, root = filesystem(job.root)
    try:
        with fs.open_input_stream(_record(root, job)) as file:
            record = _RECORD.validate_json(file.read())
    except (OSError, ValidationError):
        return None
    shards = record.outcome.shards
    sizes = [info.size for info in fs.get_file_info([f"{root}/{shard.path}" for shard in shards])]
    is_whole = sizes == [shard.bytes for shard in shards]
    return record.outcome if record.job == job.digest and is_whole else None


def note(job: Job, outcome: Outcome) -> None:
    """Writes down what came of a job; not where samples could not be used, which the next try may be able to.

    Raises:
        DataError: it cannot be written.
    """
    if outcome.problems:
        return
    fs, root = filesystem(job.root)
    with _writing(job.root):
        _write(fs, _record(root, job), _RECORD.dump_json(Record(job.digest, outcome)))


def forget(job: Job) -> None:
    """Removes what was written down of a job: its shards are about to be replaced."""
    fs, root = filesystem(job.root)
    with _writing(job.root), suppress(FileNotFoundError):
        fs.delete_file(_record(root, job))


def list_problems(out: str, lines: Sequence[str]) -> str:
    """Writes a line each into a file in the folder, until a conversion is finished, and returns its place."""
    fs, root = filesystem(out)
    with _writing(out):
        _write(fs, f"{root}/{PROBLEMS}", _listed(lines))
    return place(out, PROBLEMS)


def _listed(lines: Sequence[str]) -> bytes:
    """Returns a line each, whatever names hold."""
    return "".join(f"{' '.join(line.splitlines())}\n" for line in lines).encode("utf-8", "backslashreplace")


def _tried(fs: FileSystem, root: str) -> set[str]:
    """Returns the splits of all tries, which are folders here."""
    found = fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}", recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/{UNFINISHED}/").split("/")[0] for info in found}


def check_free(out: str) -> None:
    """Refuses a folder or URI that holds anything but a conversion that is not finished.

    Raises:
        DataError: it does, or it cannot be looked into.
    """
    fs, root = filesystem(out)
    try:
        kind = fs.get_file_info(root).type
        if kind == FileType.File:
            raise DataError(f"output {plain(out)} is a file; expected a folder that is empty or not there yet.")
        names = {Path(info.path).name for info in fs.get_file_info(FileSelector(root, allow_not_found=True))}
    except OSError as error:
        raise DataError(f"output {plain(out)} cannot be looked into ({error}){advice(out)}") from error
    if MANIFEST in names:
        raise DataError(f"output {plain(out)} holds a dataset; choose another folder, or remove it first.")
    if names and UNFINISHED not in names:
        raise DataError(f"output {plain(out)} is not empty; choose another folder, or remove it first.")


@contextmanager
def claimed(out: str, splits: Iterable[str]) -> Iterator[None]:
    """Holds a folder or URI for one conversion; what an earlier one made of it stays.

    Raises:
        DataError: it cannot be written, or another conversion is at it.
    """
    fs, root = filesystem(out)
    is_local = isinstance(fs, LocalFileSystem)  # a bucket has no folders to be made
    with ExitStack() as stack:
        with _writing(out):
            for split in splits if is_local else ():
                Path(root, split).mkdir(parents=True, exist_ok=True)
                Path(root, UNFINISHED, split).mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(Path(root)) if is_local else _leased(fs, root, plain(out)))
            if fs.get_file_info(f"{root}/{MANIFEST}").type != FileType.NotFound:  # whoever had it is done
                fs.delete_dir(f"{root}/{UNFINISHED}")
                check_free(out)
        yield


def finish(out: str, manifest: Manifest, left_out: list[str]) -> None:
    """Makes a dataset of what was written, and removes what does not belong to it.

    Args:
        out: folder or URI.
        manifest: of the dataset.
        left_out: a line for each sample that it does not hold.
    """
    fs, root = filesystem(out)
    kept = {f"{root}/{shard.path}" for split in manifest.splits.values() for shard in split.shards}
    with _writing(out):
        splits = set(manifest.splits) | _tried(fs, root)
        for info in fs.get_file_info(FileSelector(root, recursive=True)):
            relative = info.path.removeprefix(root).strip("/")
            is_ours = LEFTOVER.fullmatch(relative) and (relative in LISTS or relative.split("/")[0] in splits)
            if is_ours and info.type == FileType.File and info.path not in kept:
                fs.delete_file(info.path)
        if left_out:
            _write(fs, f"{root}/{LEFT_OUT}", _listed(left_out))
        _write(fs, f"{root}/{MANIFEST}", f"{manifest.model_dump_json(indent=1)}\n".encode())
        fs.delete_dir(f"{root}/{UNFINISHED}")


@contextmanager
def _writing(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"output {plain(out)} cannot be written ({error}){advice(out)}") from error


def _record(root: str, job: Job) -> str:
    return f"{root}/{UNFINISHED}/{job.path}.json"


def _write(fs: FileSystem, path: str, content: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    is_local = isinstance(fs, LocalFileSystem)
    with fs.open_output_stream(f"{path}.partial" if is_local else path) as file:
        file.write(content)
    if is_local:
        fs.move(f"{path}.partial", path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Holds a lock that the kernel takes back, however the process ends."""
    with (root / UNFINISHED / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another conversion is writing {root}; wait for it, or choose another folder.") from error
        yield


@contextmanager
def _leased(fs: FileSystem, root: str, name: str) -> Iterator[None]:
    """Holds a bucket's folder by an object that is written anew again and again; its age is by the bucket's clock."""
    own = f"{root}/{UNFINISHED}/at-work-{socket.gethostname()}-{os.getpid()}"
    _write(fs, own, b"")
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
            with suppress(OSError):  # what the conversion itself writes meets it too, and says so
                _write(fs, own, b"")

    thread = threading.Thread(target=refresh, name="segray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # whoever comes next finds it old soon
            fs.delete_file(own)
