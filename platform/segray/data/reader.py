"""Row groups of a split, read from wherever its shards lie: local disk, s3:// or gs://.

This module imports no more than a read needs: it is loaded by every read task's process, over and over.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.core.errors import DataError
from segray.data.manifest import Shard, Split
from segray.data.storage import content_hash, credentials_hint, display_path, filesystem, strip_credentials

ERROR_COLUMN = "error"
COLUMNS = ["id", "image", "mask", "digest"]

_AT_ONCE = 8  # shards that one read waits for at once; a store far away answers each in tens of milliseconds


@dataclass(frozen=True)
class SplitReader:
    """A split of a dataset on some storage; rows and row groups are numbered through its shards.

    Attributes:
        root: folder or URI of the dataset.
        split: the split's part of the manifest.
    """

    root: str
    split: Split

    def rows_per_group(self) -> tuple[int, ...]:
        """Returns the rows of every row group, shard after shard."""
        return tuple(rows for shard in self.split.shards for rows in shard.row_groups)

    @property
    def row_bytes(self) -> float:
        """Mean encoded size of a row."""
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
        """Returns where a row lies, for people: `train/part-00003.parquet, row 17`."""
        index = int(np.searchsorted(self._shard_ends, row, side="right"))
        shard = self.split.shards[index]
        return f"{display_path(self.root, shard.path)}, row {row - (int(self._shard_ends[index]) - shard.rows)}"

    def read(self, groups: Sequence[int]) -> pa.Table:
        """Returns the encoded rows of some row groups, ascending, with their numbers in the column `row`.

        A shard is opened once for all its groups among these, and they are fetched by ranges.

        Raises:
            DataError: a shard is missing, damaged or not the manifest's; it is named.
        """

        def shard_of(group: int) -> int:
            return int(np.searchsorted(self._first_groups, group, side="right")) - 1

        wanted = [(shard, list(members)) for shard, members in groupby(sorted(groups), shard_of)]
        with ThreadPoolExecutor(min(_AT_ONCE, len(wanted))) as pool:
            return pa.concat_tables(pool.map(lambda one: self._read_shard(*one), wanted))

    def _read_shard(self, index: int, groups: list[int]) -> pa.Table:
        shard, first = self.split.shards[index], int(self._first_groups[index])
        _check_digests(self.root, shard)
        table = read_shard(self.root, shard, [group - first for group in groups], COLUMNS)
        ends = self._group_ends[groups]
        sizes = self._group_sizes[groups]
        rows = np.concatenate([np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)])
        self._check_rows(table, rows)
        return table.append_column("row", pa.array(rows))

    def _check_rows(self, table: pa.Table, rows: NDArray[np.int64]) -> None:
        """Refuses rows whose bytes are not those that were converted.

        Raises:
            DataError: there is one; it is named.
        """
        columns = (table[name] for name in ("image", "mask", "digest"))
        for row, image, mask, digest in zip(rows.tolist(), *columns, strict=True):
            if content_hash(image.as_buffer(), mask.as_buffer()) != digest.as_py():
                raise DataError(
                    f"{self.describe_row(row)} has changed since it was converted (its digest disagrees); convert "
                    "again."
                )

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Returns some columns of all rows, in order, reading no others.

        Raises:
            DataError: there is no such column, or a shard is missing, damaged or not the manifest's; it is named.
        """

        def read(shard: Shard) -> pa.Table:
            return read_shard(self.root, shard, list(range(len(shard.row_groups))), list(names))

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            table = pa.concat_tables(pool.map(read, self.split.shards))
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DataError(
                f"{strip_credentials(self.root)} has no column {missing[0]}; it has {', '.join(self._schema().names)}; "
                "others come with prepare --columns FILE."
            )
        return table

    def require_label_columns(self, names: Sequence[str]) -> None:
        """Refuses columns that hold no labels, such as images.

        Raises:
            DataError: one is such.
        """
        schema = self._schema()
        wrong = [name for name in names if name in schema.names and _is_no_label(schema.field(name).type)]
        if wrong:
            raise DataError(
                f"column {wrong[0]} of {strip_credentials(self.root)} holds no labels; expected text or numbers."
            )

    def _schema(self) -> pa.Schema:
        fs, path = filesystem(self.root)
        with _opened(fs, f"{path}/{self.split.shards[0].path}") as file:
            return file.schema_arrow

    def min_sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of the least high and of the least wide image, reading no images.

        Raises:
            DataError: a shard is missing, damaged or not the manifest's; it is named.
        """

        def read(shard: Shard) -> NDArray[np.int64]:
            table = read_shard(self.root, shard, list(range(len(shard.row_groups))), ["height", "width"])
            return np.stack([np.asarray(table[name], np.int64) for name in ("height", "width")], axis=1)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sizes = np.concatenate(list(pool.map(read, self.split.shards)))
        return [(int(height), int(width)) for height, width in sizes[sizes.argmin(axis=0)]]

    def class_pixels(self) -> Iterator[NDArray[np.int64]]:
        """Yields the pixels of each class (rows, K) of each shard's rows, reading no images.

        Raises:
            DataError: a shard is missing, damaged or not the manifest's; it is named.
        """

        def read(shard: Shard) -> NDArray[np.int64]:
            groups = list(range(len(shard.row_groups)))
            column = read_shard(self.root, shard, groups, ["class_pixels"])["class_pixels"].combine_chunks()
            return np.asarray(column.flatten(), np.int64).reshape(shard.rows, -1)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(read, self.split.shards)


def _is_no_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_nested(kind))


def read_shard(root: str, shard: Shard, groups: list[int], columns: list[str]) -> pa.Table:
    """Returns columns of some row groups of one shard.

    Raises:
        DataError: the shard is missing, damaged or not the manifest's.
    """
    fs, path = filesystem(root)
    try:
        with _opened(fs, f"{path}/{shard.path}") as file:
            _check(root, shard, file)
            return file.read_row_groups(groups, columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise DataError(f"shard {display_path(root, shard.path)} has vanished since the run began.") from error
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        todo = credentials_hint(root) if "://" in root else "; convert the dataset again."
        raise DataError(f"shard {display_path(root, shard.path)} cannot be read ({why}){todo}") from error


@lru_cache(maxsize=1024)
def _check_digests(root: str, shard: Shard) -> None:
    """Refuses a shard whose rows are not the manifest's; once in a process.

    Raises:
        DataError: they are not.
    """
    groups = list(range(len(shard.row_groups)))
    found = read_shard(root, shard, groups, ["digest"])["digest"].to_pylist()
    if content_hash(*(digest.encode() for digest in found)) != shard.digest:
        raise DataError(
            f"shard {display_path(root, shard.path)} has changed: its rows are not those of the manifest; "
            "convert again."
        )


def _opened(fs: pyarrow.fs.FileSystem, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True, pre_buffer=True)


def _check(root: str, shard: Shard, file: pq.ParquetFile) -> None:
    """Refuses a shard that was replaced after the manifest was written, as far as its footer tells.

    Raises:
        DataError: it was.
    """
    found = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    if found != shard.row_groups:
        raise DataError(
            f"shard {display_path(root, shard.path)} has changed: its row groups hold {_briefly(found)} rows; the "
            f"manifest says {_briefly(shard.row_groups)}; convert the dataset again."
        )


def _briefly(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "")


def read_or_error(source: SplitReader, groups: Sequence[int]) -> pa.Table:
    """Returns the rows of some groups, or a row with the error: raised in a task, Ray would print it, and try again."""
    try:
        return source.read(groups)
    except DataError as error:
        return pa.table({ERROR_COLUMN: [str(error)]})


def raise_error_in(table: pa.Table) -> None:
    """Raises the DataError that a table holds instead of rows, if it does."""
    if ERROR_COLUMN in table.column_names:
        raise DataError(table.column(ERROR_COLUMN)[0].as_py())
