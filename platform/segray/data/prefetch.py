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

Payload = TypeVar("Payload")


class RowCache:
    """Encoded rows by row number; the bytes stay in Ray's object store until they are accessed."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = tables
        self._locations = {
            row: (table, index) for table in tables for index, row in enumerate(table["row"].to_pylist())
        }

    def __getitem__(self, row: int) -> tuple[bytes, bytes]:
        """Returns the encoded image and mask of a row."""
        table, index = self._locations[row]
        return table["image"][index].as_py(), table["mask"][index].as_py()

    def row_id(self, row: int) -> str:
        """Returns the id of a row."""
        table, index = self._locations[row]
        return str(table["id"][index].as_py())

    def refilled(
        self, source: SplitReader, groups: set[int], read_cpus: float, shared: "SharedSplit | None"
    ) -> "RowCache":
        """Returns a cache with the rows of `groups`; row groups that this cache already holds are not read again."""
        if shared is not None:
            return RowCache(shared.tables_for(groups))
        filtered = (_filter_groups(table, source, groups) for table in self._tables)
        kept = [table for table in filtered if len(table)]
        cached_groups = {group for table in kept for group in source.groups_of_rows(table["row"]).tolist()}
        return RowCache([*kept, *_read(source, sorted(groups - cached_groups), read_cpus)])


def _filter_groups(table: pa.Table, source: SplitReader, groups: set[int]) -> pa.Table:
    """Returns the rows of the table that belong to `groups`.

    A subset is copied, so that the object store can free the original table.
    """
    is_in_groups = np.isin(source.groups_of_rows(table["row"]), list(groups))
    return table if is_in_groups.all() else table.filter(pa.array(is_in_groups))


def prefetch_rows(
    source: SplitReader,
    runs: Iterable[tuple[Payload, Sequence[int]]],
    read_cpus: float,
    shared: "SharedSplit | None" = None,
) -> Generator[tuple[Payload, RowCache]]:
    """Yields the payload of each run with a cache of its rows; a thread fills the cache of the next run meanwhile.

    Row groups that the next run needs too are not read again. A split that fits in the cache is read once.

    Args:
        source: reader of the split.
        runs: pairs of a payload and the rows that it needs.
        read_cpus: logical CPUs that the read tasks may use.
        shared: rows of the split in Ray's object store, or `None` to read them from the shards.

    Raises:
        DataError: a shard is missing, damaged or differs from the manifest; the message names it.
    """
    silence_libraries()
    pending_runs = iter(runs)

    def fill(previous: RowCache) -> tuple[Payload, RowCache] | None:
        run = next(pending_runs, None)  # runs in the prefetch thread, because planning an epoch of many rows is slow
        if run is None:
            return None
        payload, rows = run
        return payload, previous.refilled(source, set(source.groups_of_rows(rows).tolist()), read_cpus, shared)

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
    num_tasks = min(len(groups), max(1, int(read_cpus)))
    with translate_store_full():
        tables: list[pa.Table] = ray.get(_references(source, groups, num_tasks))
    for table in tables:
        raise_error_in(table)
    return tables


def _references(source: SplitReader, groups: Sequence[int], num_tables: int) -> list[ray.ObjectRef]:
    """Returns references to `num_tables` tables in shared memory that hold the rows of the row groups."""
    chunks = [chunk.tolist() for chunk in np.array_split(groups, num_tables)]
    datasource = _RowGroupSource(source, chunks)
    dataset = ray.data.read_datasource(datasource, num_cpus=READ_CPUS, override_num_blocks=len(chunks))
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
        references = [table for table, held in zip(self.tables, self.groups, strict=True) if held & groups]
        with translate_store_full():
            tables: list[pa.Table] = ray.get(references)
        return tables


def share_split(source: SplitReader) -> SharedSplit:
    """Reads a split into Ray's object store.

    Raises:
        DataError: a shard is missing, damaged or differs from the manifest; the message names it.
        CapacityError: the object store and its spill disk are full.
    """
    silence_libraries()
    groups = range(len(source.rows_per_group()))
    num_tables = min(len(groups), max(1, round(source.row_bytes * source.split.rows / SHARED_BLOCK_BYTES)))
    references = _references(source, groups, num_tables)
    groups_per_table = []
    for reference in references:
        with translate_store_full():
            table = ray.get(reference)
        raise_error_in(table)
        groups_per_table.append(frozenset(source.groups_of_rows(table["row"]).tolist()))
    return SharedSplit(tuple(references), tuple(groups_per_table))


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
            "the object store of a node and its spill disk are full; free space on the disk of Ray's temporary folder, "
            "or start Ray with a larger --object-store-memory."
        ) from error


class _RowGroupSource(Datasource):  # type: ignore[misc]
    """Ray Data source with one read task per list of row groups."""

    def __init__(self, source: SplitReader, chunks: list[list[int]]) -> None:
        super().__init__()
        self._source = ray.put(source)  # one copy for all tasks, because a manifest can be large
        self._chunks = chunks
        self._group_bytes = source.row_bytes * source.split.rows / max(1, len(source.rows_per_group()))

    def estimate_inmemory_data_size(self) -> int:
        return int(self._group_bytes * sum(map(len, self._chunks)))

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [self._read_task(chunk) for chunk in self._chunks]

    def _read_task(self, chunk: list[int]) -> ReadTask:
        source = self._source
        size = int(self._group_bytes * len(chunk))
        metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(lambda: [read_or_error(ray.get(source), chunk)], metadata)
