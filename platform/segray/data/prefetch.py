"""Prefetching of encoded rows through Ray Data: each row group is read once, ahead of the steps that need it."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from segray.core.errors import CapacityError
from segray.core.logging import silence_libraries
from segray.core.numbers import MIB
from segray.data.reader import SplitReader, raise_error_in, read_or_error

READ_CPUS = 0.25
SHARED_BLOCK_BYTES = 16 * MIB  # target size of a table in the object store

Load = TypeVar("Load")


class RowCache:
    """Encoded rows by row number; the bytes stay in Ray's object store until they are accessed."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = tables
        numbered = ((table, enumerate(table["row"].to_pylist())) for table in tables)
        self._places = {row: (table, index) for table, rows in numbered for index, row in rows}

    def __getitem__(self, row: int) -> tuple[bytes, bytes]:
        """Returns the encoded image and mask of a row."""
        table, index = self._places[row]
        return table["image"][index].as_py(), table["mask"][index].as_py()

    def row_id(self, row: int) -> str:
        """Returns the id of a row."""
        table, index = self._places[row]
        return str(table["id"][index].as_py())

    def refilled(
        self, source: SplitReader, groups: set[int], read_cpus: float, shared: "SharedSplit | None"
    ) -> "RowCache":
        """Returns a cache with the rows of `groups`; row groups that this cache already holds are not read again."""
        if shared is not None:
            return RowCache(shared.tables_for(groups))
        kept = [part for table in self._tables if len(part := _of_groups(table, source, groups))]
        here = {group for table in kept for group in source.groups_of_rows(table["row"]).tolist()}
        return RowCache([*kept, *_read(source, sorted(groups - here), read_cpus)])


def _of_groups(table: pa.Table, source: SplitReader, groups: set[int]) -> pa.Table:
    """Returns the rows of the table that belong to `groups`.

    A subset is copied, so that the object store can free the original table.
    """
    wanted = np.isin(source.groups_of_rows(table["row"]), list(groups))
    return table if wanted.all() else table.filter(pa.array(wanted))


def prefetch_rows(
    source: SplitReader,
    runs: Iterable[tuple[Load, Sequence[int]]],
    read_cpus: float,
    shared: "SharedSplit | None" = None,
) -> Generator[tuple[Load, RowCache]]:
    """Yields the load of each run with a cache that holds its rows; the cache of the next run is filled meanwhile.

    Row groups that the next run needs too are not read again. A split that fits in the cache is read once.

    Args:
        source: reader of the split.
        runs: pairs of a load and the rows that it needs.
        read_cpus: logical CPUs that the read tasks may use.
        shared: rows of the split in Ray's object store, or `None` to read them from the shards.

    Raises:
        DataError: a shard is missing, damaged or differs from the manifest; the message names it.
    """
    silence_libraries()
    waiting = iter(runs)

    def fill(before: RowCache) -> tuple[Load, RowCache] | None:
        run = next(waiting, None)  # runs in the prefetch thread, because planning an epoch of many rows is slow
        if run is None:
            return None
        load, rows = run
        return load, before.refilled(source, set(source.groups_of_rows(rows).tolist()), read_cpus, shared)

    with ThreadPoolExecutor(1, "segray-read-ahead") as pool:
        filling = pool.submit(fill, RowCache([]))
        while (filled := filling.result()) is not None:
            filling = pool.submit(fill, filled[1])
            yield filled


def _read(source: SplitReader, groups: list[int], read_cpus: float) -> list[pa.Table]:
    """Reads the row groups into tables in shared memory, with as many tasks as may run concurrently.

    Each call runs one short Ray Data pipeline whose tasks all start together. A pipeline that waits for its consumer
    with tasks left keeps its scheduling loop spinning, and that loop competes with training for the interpreter lock.
    """
    if not groups:
        return []
    at_once = min(len(groups), max(1, int(read_cpus)))
    with translate_store_full():
        tables: list[pa.Table] = ray.get(_references(source, groups, at_once))
    for table in tables:
        raise_error_in(table)
    return tables


def _references(source: SplitReader, groups: Sequence[int], count: int) -> list[ray.ObjectRef]:
    """Returns references to `count` tables in shared memory that hold the rows of the row groups."""
    pieces = [part.tolist() for part in np.array_split(groups, count)]
    dataset = ray.data.read_datasource(_Groups(source, pieces), num_cpus=READ_CPUS, override_num_blocks=len(pieces))
    context = dataset.context  # per dataset: other Ray datasets of this process keep their settings
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_enabled = False  # there is only one operator
    with translate_store_full():
        references: list[ray.ObjectRef] = dataset.to_arrow_refs()
    return references


@dataclass(frozen=True)
class SharedSplit:
    """All rows of a split in Ray's object store; a node fetches each table once and its processes share it.

    Attributes:
        tables: references to the tables; they are valid as long as the process that created them is alive.
        groups: row groups in each table.
    """

    tables: tuple[ray.ObjectRef, ...]
    groups: tuple[frozenset[int], ...]

    def tables_for(self, groups: set[int]) -> list[pa.Table]:
        """Returns the tables that hold the given row groups; they may hold other row groups too."""
        wanted = [table for table, here in zip(self.tables, self.groups, strict=True) if here & groups]
        with translate_store_full():
            found: list[pa.Table] = ray.get(wanted)
        return found


def share_split(source: SplitReader) -> SharedSplit:
    """Reads a split into Ray's object store.

    Raises:
        DataError: a shard is missing, damaged or differs from the manifest; the message names it.
        CapacityError: the object store and its spill disk are full.
    """
    silence_libraries()
    groups = range(len(source.rows_per_group()))
    count = min(len(groups), max(1, round(source.row_bytes * source.split.rows / SHARED_BLOCK_BYTES)))
    references = _references(source, groups, count)
    held = []
    for reference in references:
        with translate_store_full():
            table = ray.get(reference)
        raise_error_in(table)
        held.append(frozenset(source.groups_of_rows(table["row"]).tolist()))
    return SharedSplit(tuple(references), tuple(held))


@contextmanager
def translate_store_full() -> Iterator[None]:
    """Converts Ray's out-of-space errors to CapacityError.

    Raises:
        CapacityError: the object store of a node and the disk that it spills to are full.
    """
    try:
        yield
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise CapacityError(
            "the object store of a node is full, and so is the disk it goes on to; make room on the disk of Ray's "
            "temporary folder, or start Ray with a larger --object-store-memory."
        ) from error


class _Groups(Datasource):  # type: ignore[misc]
    """Ray Data source with one read task per list of row groups."""

    def __init__(self, source: SplitReader, pieces: list[list[int]]) -> None:
        super().__init__()
        self._source = ray.put(source)  # one copy for all tasks, because a manifest can be large
        self._pieces = pieces
        self._group_bytes = source.row_bytes * source.split.rows / max(1, len(source.rows_per_group()))

    def estimate_inmemory_data_size(self) -> int:
        return int(self._group_bytes * sum(map(len, self._pieces)))

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [self._task(piece) for piece in self._pieces]

    def _task(self, piece: list[int]) -> ReadTask:
        source = self._source
        size = int(self._group_bytes * len(piece))
        metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(lambda: [read_or_error(ray.get(source), piece)], metadata)
