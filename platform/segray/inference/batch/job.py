"""Runs a complete batch job, resumes an interrupted one, and records the progress."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import WorkerResources
from segray.core.errors import DataError, SegrayError
from segray.core.logging import silence_libraries
from segray.data.prefetch import READ_CPUS, translate_store_full
from segray.inference.batch.inputs import InputImage, Inputs, InputShard
from segray.inference.batch.outputs import Key, format_key
from segray.inference.batch.progress import ChunkResult, JobProgress
from segray.inference.batch.worker import BatchTask, ChunkSegmenter

OnProgress = Callable[[str, int, int], None]


def run_batch_job(
    inputs: Inputs,
    work: BatchTask,
    about: Mapping[str, Any],
    workers: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> ChunkResult:
    """Segments all inputs on the cluster and returns the number of segmented images and the problems.

    Args:
        inputs: inputs to be segmented.
        work: task that is applied to every image.
        about: settings that determine the results, by name.
        workers: number of actors; defaults to one per GPU, or one per core.
        device: "cpu", "cuda" or "auto".
        on_progress: callback that receives the current phase, the number of finished images and the total.

    Raises:
        DataError: the source cannot be read, the results cannot be written, or the folder contains another job.
        CapacityError: the cluster has not enough resources for the actors.
    """
    job = {"source": inputs.place, "source version": inputs.version, **about}
    record = JobProgress(work.outputs.root)
    with record.lock(job) as done:
        images = sum(part.images + len(part.problems) for part in done.values())
        connect()
        nodes = potential_nodes()
        placement = resources.allocate_workers(
            nodes, workers or resources.max_num_workers(nodes, device), device, "--workers"
        )
        on_progress("going on" if done else "segmenting", images, inputs.images)
        for key, part in segment_on_cluster(inputs, work, placement, list(done)):
            done[key] = part
            images += part.images + len(part.problems)
            on_progress("segmenting", images, max(images, inputs.images))
        whole = ChunkResult(
            sum(part.images for part in done.values()),
            tuple(line for key in sorted(done) for line in done[key].problems),
        )
        record.commit({**job, **asdict(whole)})
    return whole


MAX_LOSSES = 3
BLOCK_BYTES = 1
"""Smaller than any chunk: Ray Data merges small blocks, and all chunks of a block would wait for the same actor."""

PICTURE = pa.struct([("name", pa.string()), ("encoded", pa.large_binary()), ("problem", pa.string())])
PARTS = pa.schema([("unit", pa.int64()), ("part", pa.int64()), ("pictures", pa.list_(PICTURE)), ("error", pa.string())])
ANSWER = pa.schema(
    [(name, pa.int64()) for name in ("unit", "part", "images")]
    + [("problems", pa.list_(pa.string())), ("error", pa.string())]
)
NOTHING = ChunkResult(0)


def segment_on_cluster(
    inputs: Inputs, work: BatchTask, placement: WorkerResources, done: Iterable[Key]
) -> Iterator[tuple[Key, ChunkResult]]:
    """Yields the result of each chunk as it completes, and resumes a limited number of times if actors are lost.

    Args:
        inputs: inputs to be segmented.
        work: task that is applied to every image.
        placement: resources of the actors.
        done: keys of chunks that are done.

    Raises:
        DataError: the source cannot be read, or the results cannot be written.
        SegrayError: actors or nodes were lost too many times in a row.
    """
    known, losses = set(done), 0
    while True:
        try:
            for key, part in _streamed(_Units(inputs, known), work, placement):
                known.add(key)
                losses = 0
                yield key, part
        except RayTaskError:  # a defect, which would recur
            raise
        except RayError as error:
            losses += 1
            if losses > MAX_LOSSES:
                raise SegrayError(
                    f"actors were lost {losses} times in a row, at last because: {error}; has every node enough "
                    "memory? Try fewer --workers; what is done is not lost."
                ) from error
        else:
            return


def _streamed(units: "_Units", work: BatchTask, placement: WorkerResources) -> Iterator[tuple[Key, ChunkResult]]:
    if not units.left:
        return
    silence_libraries()
    dataset = ray.data.read_datasource(units, num_cpus=READ_CPUS, override_num_blocks=len(units.left))
    context = dataset.context  # a separate copy: other datasets of this process keep their settings
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    shared = ray.put(work)
    with warnings.catch_warnings():
        # segray restarts lost actors. Ray does not, because it would print a warning for each restartable actor.
        # This argument is deprecated and goes away with Ray 2.64; there is no replacement yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        segmenting = dataset.map_batches(
            _Actor,
            fn_constructor_args=(shared, placement.device, placement.threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(placement.workers, units.num_chunks)),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
        )
    with translate_store_full():
        for row in segmenting.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield (row["unit"], row["part"]), ChunkResult(row["images"], tuple(row["problems"]))


class _Actor:
    """Segments one chunk per call."""

    def __init__(self, work: Any, device: str, threads: int) -> None:
        found: BatchTask = ray.get(work)
        self._worker, self._record = ChunkSegmenter(found, device, threads), JobProgress(found.outputs.root)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        key = row["unit"], row["part"]
        if row["error"]:
            return _answer(key, error=row["error"])
        part = [InputImage(**picture) for picture in row["pictures"]]
        try:
            done = self._worker(f"part-{format_key(key)}", part)
            self._record.save(key, done)
        except DataError as error:
            return _answer(key, error=str(error))
        return _answer(key, done)


def _answer(key: Key, done: ChunkResult = NOTHING, error: str = "") -> pa.Table:
    """Returns a row with the result of a chunk.

    Errors are returned as values, because Ray would print and retry a raised error.
    """
    row = {"unit": key[0], "part": key[1], "images": done.images, "problems": list(done.problems), "error": error}
    return pa.Table.from_pylist([row], schema=ANSWER)


class _Units(Datasource):  # type: ignore[misc]
    """Ray Data source with one read task per shard."""

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
        """Indices of the shards that may have unfinished chunks."""
        return [
            number
            for number, unit in enumerate(self._units)
            if not unit.is_length_known or unit.num_chunks > len(self._done[number])
        ]

    @property
    def num_chunks(self) -> int:
        """Number of chunks that may be unfinished, at least 1."""
        return max(1, sum(unit.num_chunks - len(self._done[number]) for number, unit in enumerate(self._units)))


def _task(number: int, unit: InputShard, done: set[int]) -> ReadTask:
    metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
    return ReadTask(lambda: _rows(number, unit, frozenset(done)), metadata)


def _rows(number: int, unit: InputShard, done: frozenset[int]) -> Iterator[pa.Table]:
    """Yields one row per chunk. All images of a chunk are in one row, so that Ray Data never splits a chunk."""
    try:
        for part, pictures in unit.chunks(done):
            yield _row(number, part, [asdict(picture) for picture in pictures])
    except DataError as error:
        yield _row(number, 0, [], str(error))


def _row(unit: int, part: int, pictures: list[dict[str, Any]], error: str = "") -> pa.Table:
    return pa.Table.from_pylist([{"unit": unit, "part": part, "pictures": pictures, "error": error}], schema=PARTS)
