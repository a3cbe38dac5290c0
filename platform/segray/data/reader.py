"""Reading of the row groups of a split from local disk, s3:// or gs://.

This module imports only what a read needs, because every process that runs read tasks loads it.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from segray.core.errors import DataError
from segray.core.parsing import summarize_error
from segray.data.manifest import Shard, Split
from segray.data.shard_reader import check_shard_digests, read_schema, read_shard
from segray.data.storage import (
    content_hash,
    display_path,
    strip_credentials,
)

ERROR_COLUMN = "error"
COLUMNS = ["id", "image", "mask", "digest"]

_MAX_CONCURRENT_READS = 8  # shards per call; a request to a remote store takes tens of milliseconds


@dataclass(frozen=True)
class SplitReader:
    """Reader of one split; rows and row groups are numbered consecutively over its shards.

    Attributes:
        root: folder or URI of the dataset.
        split: entry of the split in the manifest.
    """

    root: str
    split: Split

    def rows_per_group(self) -> tuple[int, ...]:
        """Returns the number of rows in every row group, in shard order."""
        return tuple(rows for shard in self.split.shards for rows in shard.row_groups)

    @property
    def row_bytes(self) -> float:
        """Mean encoded size of a row in bytes."""
        return sum(shard.bytes for shard in self.split.shards) / max(1, self.split.rows)

    @cached_property
    def _group_sizes(self) -> NDArray[np.int64]:
        return np.asarray(self.rows_per_group(), np.int64)

    @cached_property
    def _group_ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._group_sizes)

    @cached_property
    def _shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum([shard.rows for shard in self.split.shards])

    @cached_property
    def _first_groups(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(shard.row_groups) for shard in self.split.shards)])

    def groups_of_rows(self, rows: Iterable[int]) -> NDArray[np.int64]:
        """Returns the row group of each row."""
        return np.searchsorted(self._group_ends, np.asarray(rows, np.int64), side="right")

    def describe_row(self, row: int) -> str:
        """Returns the location of a row for messages, for example `train/part-00003.parquet, row 17`."""
        index = int(np.searchsorted(self._shard_ends, row, side="right"))
        shard = self.split.shards[index]
        return f"{display_path(self.root, shard.path)}, row {row - (int(self._shard_ends[index]) - shard.rows)}"

    def read(self, groups: Sequence[int]) -> pa.Table:
        """Reads the encoded rows of the given row groups, in ascending order; the column `row` holds the row numbers.

        Each shard is opened once for all its requested row groups, which are fetched as byte ranges.

        Raises:
            DataError: a shard is missing, damaged or differs from the manifest; the message names it.
        """

        def shard_of(group: int) -> int:
            return int(np.searchsorted(self._first_groups, group, side="right")) - 1

        groups_by_shard = {shard: list(members) for shard, members in groupby(sorted(groups), shard_of)}
        with ThreadPoolExecutor(min(_MAX_CONCURRENT_READS, len(groups_by_shard))) as pool:
            tables = list(pool.map(self._read_shard, groups_by_shard, groups_by_shard.values()))
        return pa.concat_tables(tables, promote_options="default")  # shards may differ in what is nullable

    def _read_shard(self, index: int, groups: list[int]) -> pa.Table:
        shard, first = self.split.shards[index], int(self._first_groups[index])
        check_shard_digests(self.root, shard)
        table = read_shard(self.root, shard, [group - first for group in groups], COLUMNS)
        ends = self._group_ends[groups]
        sizes = self._group_sizes[groups]
        rows = np.concatenate([np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)])
        self._check_rows(table, rows)
        return table.append_column("row", pa.array(rows))

    def _check_rows(self, table: pa.Table, rows: NDArray[np.int64]) -> None:
        """Checks the image and mask bytes of the rows against their digests.

        Raises:
            DataError: a digest differs; the message names the row.
        """
        columns = (table[name] for name in ("image", "mask", "digest"))
        for row, image, mask, digest in zip(rows.tolist(), *columns, strict=True):
            if content_hash(image.as_buffer(), mask.as_buffer()) != digest.as_py():
                raise DataError(
                    f"{self.describe_row(row)} has changed since the conversion (its digest does not match); convert "
                    "the dataset again."
                )

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Reads the given columns of all rows, in order; no other columns are fetched.

        Raises:
            DataError: a column does not exist, or a shard is missing, damaged or differs from the manifest; the message
                names it.
        """

        def read(shard: Shard) -> pa.Table:
            return read_shard(self.root, shard, list(range(len(shard.row_groups))), list(names))

        with ThreadPoolExecutor(_MAX_CONCURRENT_READS) as pool:
            tables = list(pool.map(read, self.split.shards))
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowInvalid as error:
            details = f"different columns ({summarize_error(error)}); convert the dataset again."
            raise DataError(f"shards of {strip_credentials(self.root)} have {details}") from error
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DataError(
                f"{strip_credentials(self.root)} has no column {missing[0]}; it has {', '.join(self._schema().names)}; "
                "add columns with prepare --columns FILE."
            )
        return table

    def require_label_columns(self, names: Sequence[str]) -> None:
        """Checks that columns hold labels (text or numbers) and not binary or nested data such as images.

        Raises:
            DataError: a column holds binary or nested data.
        """
        schema = self._schema()
        types = {name: schema.field(name).type for name in names if name in schema.names}
        for name, data_type in types.items():
            if pa.types.is_binary(data_type) or pa.types.is_nested(data_type):
                raise DataError(
                    f"column {name} of {strip_credentials(self.root)} has type {data_type}; expected text or numbers."
                )

    def _schema(self) -> pa.Schema:
        return read_schema(self.root, self.split.shards[0])

    def min_sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of the image with the smallest height and of the image with the smallest width.

        Images are not read.

        Raises:
            DataError: a shard is missing, damaged or differs from the manifest; the message names it.
        """

        def read(shard: Shard) -> NDArray[np.int64]:
            table = read_shard(self.root, shard, list(range(len(shard.row_groups))), ["height", "width"])
            return np.stack([np.asarray(table[name], np.int64) for name in ("height", "width")], axis=1)

        with ThreadPoolExecutor(_MAX_CONCURRENT_READS) as pool:
            sizes = np.concatenate([np.zeros((0, 2), np.int64), *pool.map(read, self.split.shards)])
        if not len(sizes):
            raise DataError(f"a split of {strip_credentials(self.root)} has no rows; convert the dataset again.")
        return [(int(height), int(width)) for height, width in sizes[sizes.argmin(axis=0)]]

    def class_pixels(self) -> Iterator[NDArray[np.int64]]:
        """Yields the pixels of each class, (rows, K), for the rows of each shard; images are not read.

        Raises:
            DataError: a shard is missing, damaged or differs from the manifest; the message names it.
        """

        def read(shard: Shard) -> NDArray[np.int64]:
            groups = list(range(len(shard.row_groups)))
            column = read_shard(self.root, shard, groups, ["class_pixels"])["class_pixels"].combine_chunks()
            pixels = np.asarray(column.flatten(), np.int64)
            if len(pixels) != shard.rows * len(self.split.class_pixels) or pixels.dtype != np.int64:
                path = display_path(self.root, shard.path)
                raise DataError(
                    f"shard {path} has {len(pixels)} values of class_pixels; expected {len(self.split.class_pixels)} "
                    f"for each of {shard.rows} rows; convert the dataset again."
                )
            return pixels.reshape(shard.rows, len(self.split.class_pixels))

        with ThreadPoolExecutor(_MAX_CONCURRENT_READS) as pool:
            yield from pool.map(read, self.split.shards)


def read_or_error(source: SplitReader, groups: Sequence[int]) -> pa.Table:
    """Reads the row groups, or returns a table with one row that holds the error message.

    An error raised in a task would make Ray print it and retry the task.
    """
    try:
        return source.read(groups)
    except DataError as error:
        return pa.table({ERROR_COLUMN: [str(error)]})


def raise_error_in(table: pa.Table) -> None:
    """Raises the DataError that a table from `read_or_error` holds, if any."""
    if ERROR_COLUMN in table.column_names:
        raise DataError(table.column(ERROR_COLUMN)[0].as_py())
