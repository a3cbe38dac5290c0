"""Masks of many images as one streaming Ray Data job: tasks read, an actor a GPU or core segments and writes.

Nothing but encoded images travels, and no more of them than the actors take: memory does not grow with their number.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from segray.capacity import Placement
from segray.data.fetch import READ_CPUS, store_full_told
from segray.errors import DataError, SegrayError
from segray.predictions.inputs import Inputs, Picture, Unit
from segray.predictions.outputs import Key, spelt
from segray.predictions.record import Done, Record
from segray.predictions.worker import Work, Worker
from segray.quiet import quieten

MOST_LOSSES = 3
BLOCK_BYTES = 1
"""Less than any part: Ray Data joins small blocks, and the parts of one block would wait for the same actor."""

PICTURE = pa.struct([("name", pa.string()), ("encoded", pa.large_binary()), ("problem", pa.string())])
PARTS = pa.schema([("unit", pa.int64()), ("part", pa.int64()), ("pictures", pa.list_(PICTURE)), ("error", pa.string())])
ANSWER = pa.schema(
    [(name, pa.int64()) for name in ("unit", "part", "images")]
    + [("problems", pa.list_(pa.string())), ("error", pa.string())]
)
NOTHING = Done(0)


def segmented(inputs: Inputs, work: Work, placement: Placement, done: Iterable[Key]) -> Iterator[tuple[Key, Done]]:
    """Yields what came of each part, as they come; goes on where an actor or a node is lost, some times.

    Args:
        inputs: what is to be segmented.
        work: with every image.
        placement: of the actors.
        done: parts that are done.

    Raises:
        DataError: the source cannot be read, or the results not be written.
        SegrayError: actors were lost again and again.
    """
    known, losses = set(done), 0
    while True:
        try:
            for key, part in _streamed(_Units(inputs, known), work, placement):
                known.add(key)
                losses = 0
                yield key, part
        except RayTaskError:  # a defect, which would come again
            raise
        except RayError as error:
            losses += 1
            if losses > MOST_LOSSES:
                raise SegrayError(
                    f"actors were lost {losses} times in a row, at last because: {error}; has every node enough "
                    "memory? Try fewer --workers; what is done is not lost."
                ) from error
        else:
            return


def _streamed(units: "_Units", work: Work, placement: Placement) -> Iterator[tuple[Key, Done]]:
    if not units.left:
        return
    quieten()
    dataset = ray.data.read_datasource(units, num_cpus=READ_CPUS, override_num_blocks=len(units.left))
    context = dataset.context  # its own: other data sets of this process keep their ways
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    shared = ray.put(work)
    with warnings.catch_warnings():
        # Lost actors are not started again by Ray, whose core warns on the terminal of each that may be, but by us.
        # This way to say so goes with Ray 2.64; there is no other yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        segmenting = dataset.map_batches(
            _Actor,
            fn_constructor_args=(shared, placement.device, placement.threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(placement.workers, units.num_parts)),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
        )
    with store_full_told():
        for row in segmenting.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield (row["unit"], row["part"]), Done(row["images"], tuple(row["problems"]))


class _Actor:
    """Segments one part a call."""

    def __init__(self, work: Any, device: str, threads: int) -> None:
        found: Work = ray.get(work)
        self._worker, self._record = Worker(found, device, threads), Record(found.outputs.root)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        key = row["unit"], row["part"]
        if row["error"]:
            return _answer(key, error=row["error"])
        part = [Picture(**picture) for picture in row["pictures"]]
        try:
            done = self._worker(f"part-{spelt(key)}", part)
            self._record.note(key, done)
        except DataError as error:
            return _answer(key, error=str(error))
        return _answer(key, done)


def _answer(key: Key, done: Done = NOTHING, error: str = "") -> pa.Table:
    """Returns a row of what came of a part; an error as a value: raised, Ray would print it, and try again."""
    row = {"unit": key[0], "part": key[1], "images": done.images, "problems": list(done.problems), "error": error}
    return pa.Table.from_pylist([row], schema=ANSWER)


class _Units(Datasource):  # type: ignore[misc]
    """The Ray Data source with a read task a unit."""

    def __init__(self, inputs: Inputs, done: Iterable[Key]) -> None:
        super().__init__()
        self._units = inputs.units
        self._done = defaultdict[int, set[int]](set)
        for unit, part in done:
            self._done[unit].add(part)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [_task(number, self._units[number], self._done[number]) for number in self.left]

    @property
    def left(self) -> list[int]:
        """Numbers of the units of which something may be left."""
        return [
            number
            for number, unit in enumerate(self._units)
            if not unit.is_counted or unit.num_parts > len(self._done[number])
        ]

    @property
    def num_parts(self) -> int:
        """How many parts may be left, at least one."""
        return max(1, sum(unit.num_parts - len(self._done[number]) for number, unit in enumerate(self._units)))


def _task(number: int, unit: Unit, done: set[int]) -> ReadTask:
    metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
    return ReadTask(lambda: _rows(number, unit, frozenset(done)), metadata)


def _rows(number: int, unit: Unit, done: frozenset[int]) -> Iterator[pa.Table]:
    """Yields a row a part; pictures in one row, so that no part is torn apart."""
    try:
        for part, pictures in unit.parts(done):
            yield _row(number, part, [asdict(picture) for picture in pictures])
    except DataError as error:
        yield _row(number, 0, [], str(error))


def _row(unit: int, part: int, pictures: list[dict[str, Any]], error: str = "") -> pa.Table:
    return pa.Table.from_pylist([{"unit": unit, "part": part, "pictures": pictures, "error": error}], schema=PARTS)
