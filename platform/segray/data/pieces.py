"""Rows of a split, read in pieces from wherever its shards lie.

This module imports no more than a read needs: it is loaded by every read task's process, over and over.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.data.schema import Shard, Split, filesystem
from segray.errors import DataError

ERROR = "error"


@dataclass(frozen=True)
class Piece:
    """What one read task fetches: rows of a split in the order they are wanted, with their seeds."""

    rows: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A split of a dataset on some storage, addressed by row number.

    Attributes:
        root: folder or URI of the dataset.
        split: the split's part of the manifest.
    """

    root: str
    split: Split

    def group_rows(self) -> tuple[int, ...]:
        """Returns the rows of every row group, shard after shard."""
        return tuple(rows for shard in self.split.shards for rows in shard.row_groups)

    @property
    def row_bytes(self) -> float:
        """Mean encoded size of a row."""
        return sum(shard.bytes for shard in self.split.shards) / max(1, self.split.rows)

    def read(self, piece: Piece) -> pa.Table:
        """Returns the encoded rows of a piece in its order, with columns `row` and `seed`.

        Raises:
            DataError: a shard is missing or damaged; it is named.
        """
        wanted = np.asarray(piece.rows, dtype=np.int64)
        tables, found = [], []
        for shard, first in self._shards():
            inside = np.unique(wanted[(wanted >= first) & (wanted < first + shard.rows)])
            if len(inside):
                table, rows = _read_shard(self.root, shard, inside - first)
                tables.append(table)
                found.append(rows + first)
        rows = np.concatenate(found)
        table = pa.concat_tables(tables).take(np.searchsorted(rows, wanted))
        return table.append_column("row", pa.array(wanted)).append_column("seed", pa.array(piece.seeds))

    def _shards(self) -> Iterator[tuple[Shard, int]]:
        first = 0
        for shard in self.split.shards:
            yield shard, first
            first += shard.rows


def _read_shard(root: str, shard: Shard, rows: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
    """Returns (table, rows) of the wanted rows of one shard, ascending, reading only their row groups."""
    fs, path = filesystem(root)
    ends = np.cumsum(shard.row_groups)
    group_of = np.searchsorted(ends, rows, side="right")
    groups = np.unique(group_of)
    try:
        with pq.ParquetFile(f"{path}/{shard.path}", filesystem=fs, page_checksum_verification=True) as file:
            table = file.read_row_groups(groups.tolist(), columns=["id", "image", "mask"], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"shard {root}/{shard.path} cannot be read ({error}); convert the dataset again.") from error
    read = np.concatenate([np.arange(ends[g] - shard.row_groups[g], ends[g]) for g in groups])
    return table.take(np.searchsorted(read, rows)), rows


def read_or_error(source: Source, piece: Piece) -> pa.Table:
    """Returns the rows of a piece, or a row with the error: raised in a task, Ray would print it, and try again."""
    try:
        return source.read(piece)
    except DataError as error:
        return pa.table({ERROR: [str(error)]})


def raise_error_in(table: pa.Table) -> None:
    """Raises the DataError that a table holds instead of rows, if it does."""
    if ERROR in table.column_names:
        found = table.column(ERROR).drop_null().to_pylist()
        if found:
            raise DataError(found[0])
