"""The journal of a run: everything that tracking is told, appended to a file first and uploaded from there.

A line is one JSON record `{"kind": ..., "time_ms": ..., ...}`. Appending never waits for a server, so training never
does; what could not be uploaded stays in the file.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

JOURNAL = "journal.jsonl"

Record = dict[str, Any]
Kind = Literal["run", "metrics", "text", "model", "end"]


class Journal:
    """Appends records to the journal in a run's folder. Two processes may append: a record is one write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL

    def write(self, kind: Kind, **fields: Any) -> None:
        """Appends one record, with the time of now."""
        record = {"kind": kind, "time_ms": int(time.time() * 1000), **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Tail:
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
                yield json.loads(line)
