"""State of an unfinished conversion: the finished jobs and the lock.

The state is stored in the dataset folder, so that local folders and buckets work the same way. Shards get their final
names immediately. `dataset.json`, which makes the folder a dataset, is written last.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from pydantic import TypeAdapter, ValidationError

from segray.core.errors import DataError
from segray.data.convert.shards import ShardJob, ShardResult
from segray.data.locks import exclusive_lock
from segray.data.manifest import MANIFEST, SKIPPED_LIST, Manifest
from segray.data.storage import (
    UNFINISHED,
    credentials_hint,
    display_path,
    filesystem,
    require_writable,
    strip_credentials,
    translate_write_errors,
    write_atomic,
)

PROBLEMS = "problems.txt"
LISTS = (SKIPPED_LIST, PROBLEMS)
PARTIAL_OUTPUT = re.compile(rf"[^/]+/part-\d+(-\d+)?\.parquet(\.[0-9a-f]{{8}}\.partial)?|{SKIPPED_LIST}|{PROBLEMS}")
"""Paths, relative to the root, of files that an interrupted conversion may leave."""


@dataclass(frozen=True)
class ShardRecord:
    """Record of a finished job: its digest and its result."""

    job: str
    outcome: ShardResult


_RECORD = TypeAdapter(ShardRecord)


def load_result(job: ShardJob) -> ShardResult | None:
    """Returns the recorded result of a job, or `None` if there is no record or its shards are missing."""
    fs, root = filesystem(job.root)
    try:
        with fs.open_input_stream(_record_path(root, job)) as file:
            record = _RECORD.validate_json(file.read())
    except (OSError, ValidationError):
        return None
    shards = record.outcome.shards
    sizes = [info.size for info in fs.get_file_info([f"{root}/{shard.path}" for shard in shards])]
    is_complete = sizes == [shard.bytes for shard in shards]
    return record.outcome if record.job == job.digest and is_complete else None


def save_result(job: ShardJob, result: ShardResult) -> None:
    """Records the result of a job.

    A result with unusable samples is not recorded, so that the next attempt reads these samples again.

    Raises:
        DataError: the record cannot be written.
    """
    if result.problems:
        return
    fs, root = filesystem(job.root)
    with translate_write_errors(job.root):
        write_atomic(fs, _record_path(root, job), _RECORD.dump_json(ShardRecord(job.digest, result)))


def delete_result(job: ShardJob) -> None:
    """Deletes the record of a job before its shards are replaced."""
    fs, root = filesystem(job.root)
    with translate_write_errors(job.root), suppress(FileNotFoundError):
        fs.delete_file(_record_path(root, job))


def write_problems(out: str, lines: Sequence[str]) -> str:
    """Writes the lines to a file in the folder and returns its location; a finished conversion removes the file."""
    fs, root = filesystem(out)
    with translate_write_errors(out):
        write_atomic(fs, f"{root}/{PROBLEMS}", _encode_lines(lines))
    return display_path(out, PROBLEMS)


def _encode_lines(lines: Sequence[str]) -> bytes:
    """Encodes one entry per line; line breaks and invalid characters in the entries are replaced."""
    return "".join(f"{' '.join(line.splitlines())}\n" for line in lines).encode("utf-8", "backslashreplace")


def _attempted_splits(fs: FileSystem, root: str) -> set[str]:
    """Returns the splits of all attempts, which are subfolders of the state folder."""
    infos = fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}", recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/{UNFINISHED}/").split("/")[0] for info in infos}


def require_empty_output(out: str) -> None:
    """Checks that a folder or URI is empty, does not exist, or holds an unfinished conversion.

    Raises:
        DataError: the output holds anything else or cannot be listed.
    """
    fs, root = filesystem(out)
    try:
        if fs.get_file_info(root).type == FileType.File:
            raise DataError(f"output {strip_credentials(out)} is a file; expected a new or empty folder.")
        names = {Path(info.path).name for info in fs.get_file_info(FileSelector(root, allow_not_found=True))}
    except OSError as error:
        raise DataError(f"output {strip_credentials(out)} cannot be listed ({error}){credentials_hint(out)}") from error
    if MANIFEST in names:
        raise DataError(
            f"output {strip_credentials(out)} contains a dataset; choose another folder, or remove it first."
        )
    if names and UNFINISHED not in names:
        raise DataError(f"output {strip_credentials(out)} is not empty; choose another folder, or remove it first.")


@contextmanager
def conversion_lock(out: str, splits: Iterable[str]) -> Iterator[None]:
    """Locks a folder or URI for one conversion; the output of an earlier attempt is kept.

    Raises:
        DataError: the output cannot be written, or another conversion holds the lock.
    """
    fs, root = filesystem(out)
    is_local = isinstance(fs, LocalFileSystem)  # buckets have no folders to create
    with ExitStack() as stack:
        with translate_write_errors(out):
            for split in splits if is_local else ():
                Path(root, split).mkdir(parents=True, exist_ok=True)
                Path(root, UNFINISHED, split).mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(out, "conversion"))
            # The previous lock holder may have finished the conversion in the meantime.
            if fs.get_file_info(f"{root}/{MANIFEST}").type != FileType.NotFound:
                fs.delete_dir(f"{root}/{UNFINISHED}")
                require_empty_output(out)
        yield


def commit_dataset(out: str, manifest: Manifest, skipped: list[str]) -> None:
    """Writes the manifest and deletes the files of earlier attempts.

    Args:
        out: folder or URI.
        manifest: manifest of the dataset.
        skipped: one line for each sample that is not in the dataset.
    """
    fs, root = filesystem(out)
    kept = {f"{root}/{shard.path}" for split in manifest.splits.values() for shard in split.shards}
    require_writable(root)
    with translate_write_errors(out):
        splits = set(manifest.splits) | _attempted_splits(fs, root)
        for info in fs.get_file_info(FileSelector(root, recursive=True)):
            relative = info.path.removeprefix(root).strip("/")
            is_output = PARTIAL_OUTPUT.fullmatch(relative) and (relative in LISTS or relative.split("/")[0] in splits)
            if is_output and info.type == FileType.File and info.path not in kept:
                fs.delete_file(info.path)
        if skipped:
            write_atomic(fs, f"{root}/{SKIPPED_LIST}", _encode_lines(skipped))
        write_atomic(fs, f"{root}/{MANIFEST}", f"{manifest.model_dump_json(indent=1)}\n".encode())
        fs.delete_dir(f"{root}/{UNFINISHED}")


def _record_path(root: str, job: ShardJob) -> str:
    return f"{root}/{UNFINISHED}/{job.path}.json"
