"""Journal of a run: an append-only file of tracking records, from which the uploader sends them to MLflow.

Each line is one JSON record `{"kind": ..., "time_ms": ..., ...}`. Appending a record never waits for a server, so the
training never waits either. Records that could not be uploaded stay in the file.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from segray.core.errors import DataError
from segray.core.parsing import parse_json

JOURNAL = "journal.jsonl"

Record = dict[str, Any]
Types = tuple[type, ...]
FIELDS: dict[str, Types] = {"kind": (str,), "time_ms": (int,)}
KIND_FIELDS: dict[str, dict[str, Types]] = {
    "run": {"key": (str,), "dataset": (dict,)},
    "resumed": {"dataset": (dict,)},
    "metrics": {"step": (int,), "values": (dict,)},
    "rewound": {"step": (int,)},
    "event": {"text": (str,)},
    "end": {"status": (str,)},
    "trial": {"number": (int,), "values": (dict,)},
    "became": {"number": (int,), "state": (str,), "values": (dict,), "costs": (dict,), "seconds": (int, float)},
}
"""Fields of every record, and types of the fields of each kind. A reader that needs one of them reports its absence."""
REQUIRED_FIELDS: dict[str, dict[str, Types]] = {
    "text": {"name": (str,), "text": (str,)},
    "image": {"file": (str,), "place": (str,)},
    "tag": {"name": (str,), "value": (str, int, float)},
    "model": {"folder": (str,), "name": (str,), "aliases": (list,)},
}
"""Fields that every record of these kinds has."""
Kind = Literal[
    "run", "resumed", "rewound", "metrics", "text", "image", "tag", "event", "model", "end", "trial", "became"
]


class Journal:
    """Appends records to the journal in a run's folder. Several processes may append, because a record is one write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL

    def write(self, kind: Kind, **fields: Any) -> None:
        """Appends one record with the current time.

        Raises:
            OSError: the record could not be written completely.
        """
        record = {"kind": kind, "time_ms": int(time.time() * 1000), **fields}
        line = json.dumps(record).encode() + b"\n"
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            # The last line is incomplete if a writer died or the disk was full.
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(handle)

    def size(self) -> int:
        """Returns the size of the file in bytes; 0 if it does not exist."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def records(self) -> list[Record]:
        """Returns all records."""
        return list(JournalReader(self.path).read())

    def start(self) -> Record:
        """Returns the record with which the run started.

        Raises:
            DataError: the journal is missing or damaged, or its first record is no record of kind run with a key and a
                digest of the dataset.
        """
        record = next(iter(JournalReader(self.path).read()), {})
        if record.get("kind") != "run" or "key" not in record or not isinstance(_digest(record), str):
            raise DataError(
                f"{self.path} does not start with a record of kind run, with its key and the digest of its dataset; "
                "the journal is damaged: restore it from a copy, or start a new run."
            )
        return record

    def last_step(self) -> int:
        """Returns the largest step with metrics since the last rewind, but at least the step of that rewind (or 0)."""
        last = 0
        for record in self.records():
            if record["kind"] == "metrics":
                last = max(last, record.get("step", 0))
            elif record["kind"] == "rewound":
                last = record.get("step", last)
        return last


class JournalReader:
    """Reads complete lines of a journal from an offset, while other processes append.

    A line that is not JSON is the incomplete record of a writer that died, and is skipped. A complete record with wrong
    fields is an error.

    Attributes:
        offset: number of bytes read so far.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self.offset = offset

    def read(self) -> Iterator[Record]:
        """Yields the new records. `offset` points after each record when it is yielded.

        Raises:
            DataError: the journal is not a regular file, or a record has no kind or a field of a wrong type.
        """
        if self._path.exists() and not self._path.is_file():
            raise DataError(f"{self._path} is not a regular file; expected a journal.")
        try:
            file = self._path.open("rb")
        except FileNotFoundError:  # nothing is written yet, or the folder is removed
            return
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DataError(f"{self._path} is a link to itself; expected a journal.") from error
            raise
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):  # the writer has not finished the line
                    return
                self.offset += len(line)
                try:
                    record = parse_json(line)
                except ValueError:  # incomplete record of a writer that died
                    continue
                if problem := _find_problem(record):
                    raise DataError(f"{self._path} has an invalid record before byte {self.offset} ({problem}).")
                yield record


def _digest(record: Record) -> Any:
    return record.get("dataset", {}).get("digest")


def _find_problem(record: Any) -> str:
    """Returns what is wrong with a record, or an empty string."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__}; expected an object"
    kind = str(record.get("kind"))
    required = FIELDS | REQUIRED_FIELDS.get(kind, {})
    for name, types in (required | KIND_FIELDS.get(kind, {})).items():
        if name not in record and name not in required:
            continue
        if not isinstance(record.get(name), types) or isinstance(record.get(name), bool):
            return f"{name} is {str(record.get(name))[:100]!r}; expected {' or '.join(kind.__name__ for kind in types)}"
    values = record.get("values", {}).values() if record["kind"] == "metrics" else ()
    if not all(isinstance(value, int | float | None) for value in values):
        return "a metric is not a number"
    return ""
