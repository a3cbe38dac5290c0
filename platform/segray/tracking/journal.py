"""Journal of a run: an append-only file of tracking records, from which the uploader sends them to MLflow.

Each line is one JSON record `{"kind": ..., "time_ms": ..., ...}`. Appending a record never waits for a server, so the
training never waits either. Records that could not be uploaded stay in the file.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

JOURNAL = "journal.jsonl"

Record = dict[str, Any]
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

    def last_step(self) -> int:
        """Returns the largest step with metrics since the last rewind, but at least the step of that rewind (or 0)."""
        last = 0
        for record in self.records():
            if record["kind"] == "metrics":
                last = max(last, record["step"])
            elif record["kind"] == "rewound":
                last = record["step"]
        return last


class JournalReader:
    """Reads complete lines of a journal from an offset, while other processes append.

    Attributes:
        offset: number of bytes read so far.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self.offset = offset

    def read(self) -> Iterator[Record]:
        """Yields the new records. `offset` points after each record when it is yielded."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:  # nothing is written yet, or the folder is removed
            return
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):  # the writer has not finished the line
                    return
                self.offset += len(line)
                with suppress(ValueError):  # incomplete record of a writer that died
                    yield json.loads(line)
