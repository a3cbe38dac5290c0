"""The journal of a run: everything that tracking is told, appended to a file first and uploaded from there.

A line is one JSON record `{"kind": ..., "time_ms": ..., ...}`. Appending never waits for a server, so training never
does; what could not be uploaded stays in the file.
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
    """Appends records to the journal in a run's folder. Several processes may append: a record is one write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL

    def write(self, kind: Kind, **fields: Any) -> None:
        """Appends one record, with the time of now.

        Raises:
            OSError: it could not be written whole.
        """
        record = {"kind": kind, "time_ms": int(time.time() * 1000), **fields}
        line = json.dumps(record).encode() + b"\n"
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            if size and os.pread(handle, 1, size - 1) != b"\n":  # somebody died, or the disk was full, in mid-line
                line = b"\n" + line
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(handle)

    def records(self) -> list[Record]:
        """Returns all that was appended."""
        return list(JournalReader(self.path).read())

    def last_step(self) -> int:
        """Returns the step of the last metrics, 0 if there are none, or that the run was set back to since."""
        last = 0
        for record in self.records():
            if record["kind"] == "metrics":
                last = max(last, record["step"])
            elif record["kind"] == "rewound":
                last = record["step"]
        return last


class JournalReader:
    """Reads a journal from an offset on, whole lines only, while others append.

    Attributes:
        offset: bytes read so far.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self.offset = offset

    def read(self) -> Iterator[Record]:
        """Yields the records that came since; `offset` stands behind each as it is yielded."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):  # its writer is in the middle of it
                    return
                self.offset += len(line)
                with suppress(ValueError):  # half a record, whose writer died
                    yield json.loads(line)
