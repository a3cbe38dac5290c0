"""Encoded rows through Ray Data: the row groups that a run of steps names, each read once, the next run's ahead."""

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
from segray.data.reader import SplitReader, raise_error_in, read_or_error

READ_CPUS = 0.25
SHARED_BLOCK_BYTES = 16 * 2**20  # of a piece

Load = TypeVar("Load")


class RowCache:
    """Encoded rows at hand, by row number; the bytes stay where Ray Data put them until they are asked for."""

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
        """Returns a shelf with the rows of these groups: those that are here, and the others read."""
        if shared is not None:
            return RowCache(shared.tables_for(groups))
        kept = [part for table in self._tables if len(part := _of_groups(table, source, groups))]
        here = {group for table in kept for group in source.groups_of_rows(table["row"]).tolist()}
        return RowCache([*kept, *_read(source, sorted(groups - here), read_cpus)])


def _of_groups(table: pa.Table, source: SplitReader, groups: set[int]) -> pa.Table:
    """Returns the table's rows of these groups; if not all, a copy, so that the shared memory of the rest is freed."""
    wanted = np.isin(source.groups_of_rows(table["row"]), list(groups))
    return table if wanted.all() else table.filter(pa.array(wanted))


def prefetch_rows(
    source: SplitReader,
    runs: Iterable[tuple[Load, Sequence[int]]],
    read_cpus: float,
    shared: "SharedSplit | None" = None,
) -> Generator[tuple[Load, RowCache]]:
    """Yields each run's load with a shelf that holds its rows; the next run's is filled meanwhile.

    Row groups that the next run needs too are not read again: a split that fits on a shelf is read once.

    Args:
        source: the split.
        runs: what is to be done, with the rows it needs.
        read_cpus: logical CPUs the read tasks may take.
        shared: the split's rows, if they lie in the cluster's memory already.

    Raises:
        DataError: a shard is missing, damaged or not the manifest's; it is named.
    """
    silence_libraries()
    waiting = iter(runs)

    def fill(before: RowCache) -> tuple[Load, RowCache] | None:
        run = next(waiting, None)  # here, in the other thread: to plan an epoch of many rows takes a while
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
    """Returns the rows of the groups as tables in shared memory, read by as many tasks as may run at once.

    One short Ray Data pipeline, all of whose tasks start together: one with tasks left that waits for its consumer
    keeps its scheduling loop spinning, and that loop shares the interpreter's lock with the training.
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
    """Returns tables in shared memory with the rows of the groups, split into so many pieces."""
    pieces = [part.tolist() for part in np.array_split(groups, count)]
    dataset = ray.data.read_datasource(_Groups(source, pieces), num_cpus=READ_CPUS, override_num_blocks=len(pieces))
    context = dataset.context  # its own: other data sets of this process keep their ways
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_enabled = False  # one operator that nobody competes with
    with translate_store_full():
        references: list[ray.ObjectRef] = dataset.to_arrow_refs()
    return references


@dataclass(frozen=True)
class SharedSplit:
    """All rows of a split in the cluster's memory: a node fetches a table once, and all its processes see that one.

    Attributes:
        tables: that hold them; they last as long as the process that had them read.
        groups: row groups in each table.
    """

    tables: tuple[ray.ObjectRef, ...]
    groups: tuple[frozenset[int], ...]

    def tables_for(self, groups: set[int]) -> list[pa.Table]:
        """Returns the tables that hold some row groups, perhaps among others."""
        wanted = [table for table, here in zip(self.tables, self.groups, strict=True) if here & groups]
        with translate_store_full():
            found: list[pa.Table] = ray.get(wanted)
        return found


def share_split(source: SplitReader) -> SharedSplit:
    """Reads a split into the cluster's memory.

    Raises:
        DataError: a shard is missing, damaged or not the manifest's; it is named.
        CapacityError: there is no room.
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
    """Turns Ray's errors about room into ours.

    Raises:
        CapacityError: the object store of a node is full, and so is the disk it goes on to.
    """
    try:
        yield
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise CapacityError(
            "the object store of a node is full, and so is the disk it goes on to; make room on the disk of Ray's "
            "temporary folder, or start Ray with a larger --object-store-memory."
        ) from error


class _Groups(Datasource):  # type: ignore[misc]
    """The Ray Data source whose read tasks fetch some row groups each."""

    def __init__(self, source: SplitReader, pieces: list[list[int]]) -> None:
        super().__init__()
        self._source = ray.put(source)  # one copy for all tasks; a manifest can be large
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
