"""Progress of a job: folder lock, finished chunks and job settings. An interrupted job resumes from these records."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from segray.config.renamed import use_current_names
from segray.core.errors import DataError, format_list
from segray.core.parsing import parse_json, summarize_error
from segray.data.locks import exclusive_lock
from segray.data.storage import UNFINISHED, filesystem, strip_credentials, translate_write_errors, write_atomic
from segray.inference.batch.outputs import Key, format_key, write_file

SUMMARY, JOB = "predictions.json", "job.json"
LAYOUT = 1
CHUNK_FILE = re.compile(r"\d+-\d+\.json")


@dataclass(frozen=True)
class ChunkResult:
    """The result of a chunk.

    Attributes:
        images: number of segmented images.
        problems: reasons why other images were not segmented, one line each.
    """

    images: int
    problems: tuple[str, ...] = ()


def _parse_object(path: str, text: bytes) -> dict[str, Any]:
    """Parses a JSON object of the state of a job.

    Raises:
        DataError: the text is not a JSON object.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({summarize_error(error)}); delete the folder and run the job again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged; delete the folder and run the job again.")
    return content


def merge_results(results: Iterable[ChunkResult]) -> ChunkResult:
    """Returns the result of several chunks together."""
    merged = list(results)
    problems = tuple(problem for result in merged for problem in result.problems)
    return ChunkResult(sum(result.images for result in merged), problems)


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job in a folder or bucket.

    Attributes:
        root: absolute path or URI of the results.
    """

    root: str

    @contextmanager
    def lock(self, job: Mapping[str, Any]) -> Iterator[dict[Key, ChunkResult]]:
        """Locks the folder for one job and yields the results of an earlier attempt of the same job.

        Args:
            job: settings that determine the results, by name.

        Raises:
            DataError: the folder contains other files or another job, cannot be written, or is locked.
        """
        fs, root = filesystem(self.root)
        with ExitStack() as stack:
            with translate_write_errors(self.root):
                self._require_available(fs, root)
                if isinstance(fs, LocalFileSystem):
                    Path(root, UNFINISHED).mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(self.root, "job"))
                self._require_available(fs, root)  # the previous owner of the lock may have finished the job
                self._require_same_job(fs, f"{root}/{UNFINISHED}/{JOB}", job)
                done = self._load_results(fs, root)
            yield done

    def require_no_job(self) -> None:
        """Validates that the folder contains no job, finished or unfinished.

        Raises:
            DataError: the folder contains a job, or the path is a file.
        """
        fs, root = filesystem(self.root)
        with translate_write_errors(self.root):
            names = self._names(fs, root)
        if names & {SUMMARY, UNFINISHED}:
            raise DataError(
                f"output {strip_credentials(self.root)} contains predictions; choose another folder or delete it."
            )

    def _names(self, fs: FileSystem, root: str) -> set[str]:
        if fs.get_file_info(root).type == FileType.File:
            raise DataError(f"output {strip_credentials(self.root)} is a file; expected a folder.")
        return {Path(info.path).name for info in fs.get_file_info(FileSelector(root, allow_not_found=True))}

    def _require_available(self, fs: FileSystem, root: str) -> None:
        names = self._names(fs, root)
        if SUMMARY in names:
            raise DataError(
                f"output {strip_credentials(self.root)} contains predictions; choose another folder or delete it."
            )
        if names and UNFINISHED not in names:
            raise DataError(
                f"output {strip_credentials(self.root)} is not empty; choose another folder or delete its contents."
            )

    def _require_same_job(self, fs: FileSystem, path: str, job: Mapping[str, Any]) -> None:
        if fs.get_file_info(path).type == FileType.NotFound:
            write_atomic(fs, path, json.dumps(job).encode())
            return
        with fs.open_input_stream(path) as file:
            stored = _parse_object(path, file.read())
        if isinstance(stored.get("settings"), dict):
            stored["settings"] = use_current_names({"eval": stored["settings"]})["eval"]
        current = json.loads(json.dumps(job))
        differences = [
            f"{name[:100]}: {str(stored.get(name))[:200]} in the folder, {str(current.get(name))[:200]} now"
            for name in current | stored
            if stored.get(name) != current.get(name)
        ]
        if differences:
            raise DataError(
                f"output {strip_credentials(self.root)} contains an unfinished job with other settings:"
                f"{format_list(differences)}\n"
                "choose another folder or delete it."
            )

    def _load_results(self, fs: FileSystem, root: str) -> dict[Key, ChunkResult]:
        results = {}
        for info in fs.get_file_info(FileSelector(f"{root}/{UNFINISHED}/done", allow_not_found=True)):
            path = PurePosixPath(info.path)
            if CHUNK_FILE.fullmatch(path.name):
                with fs.open_input_stream(info.path) as file:
                    record = _parse_object(info.path, file.read())
                shard, _, chunk = path.stem.partition("-")
                images, problems = record.get("images"), record.get("problems")
                if type(images) is not int or images < 0 or not isinstance(problems, list):
                    raise DataError(f"{info.path} is damaged; delete the folder and run the job again.")
                results[int(shard), int(chunk)] = ChunkResult(images, tuple(map(str, problems)))
        return results

    def save(self, key: Key, result: ChunkResult) -> None:
        """Records the result of a chunk whose outputs are written.

        Raises:
            DataError: the record cannot be written.
        """
        fs, root = filesystem(self.root)
        with translate_write_errors(self.root):
            record = json.dumps({"images": result.images, "problems": result.problems})
            write_file(fs, f"{root}/{UNFINISHED}/done/{format_key(key)}.json", record.encode())

    def commit(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of the job and deletes the progress records.

        Raises:
            DataError: the summary cannot be written.
        """
        fs, root = filesystem(self.root)
        with translate_write_errors(self.root):
            write_atomic(fs, f"{root}/{SUMMARY}", json.dumps({"layout": LAYOUT, **summary}, indent=1).encode())
            fs.delete_dir(f"{root}/{UNFINISHED}")
