"""Runs a complete batch job, resumes an interrupted one, and records the progress."""

import logging
import platform
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
from segray.core.errors import DataError, SegrayError, first_line
from segray.core.logging import silence_libraries
from segray.data.prefetch import READ_CPUS, translate_store_full
from segray.data.storage import filesystem, require_writable
from segray.inference.batch.inputs import InputImage, Inputs, InputShard
from segray.inference.batch.outputs import Key, format_key
from segray.inference.batch.progress import ChunkResult, JobProgress, merge_results
from segray.inference.batch.worker import BatchTask, ChunkSegmenter

OnProgress = Callable[[str, int, int], None]


def run_batch_job(
    inputs: Inputs,
    task: BatchTask,
    settings: Mapping[str, Any],
    workers: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> ChunkResult:
    """Segments all inputs on the cluster and returns the number of segmented images and the problems.

    Args:
        inputs: inputs to be segmented.
        task: task that is applied to every image.
        settings: settings that determine the results, by name.
        workers: number of actors; defaults to one per GPU, or one per core.
        device: "cpu", "cuda" or "auto".
        on_progress: callback that receives the current phase, the number of finished images and the total.

    Raises:
        DataError: the source cannot be read, the results cannot be written, or the folder contains another job.
        CapacityError: the cluster does not have enough resources for the actors.
        SegrayError: the job failed for a reason other than an image, such as a device error. The finished chunks are
            recorded, and the same call resumes the job.
    """
    job = {"source": inputs.location, "source version": inputs.version, **settings}
    progress = JobProgress(task.outputs.root)
    with progress.lock(job) as done:
        images = sum(_num_finished(result) for result in done.values())
        connect()
        nodes = potential_nodes()
        placement = resources.allocate_workers(
            nodes, workers or resources.max_num_workers(nodes, device), device, "--workers"
        )
        on_progress("resuming" if done else "segmenting", images, inputs.images)
        for key, result in segment_on_cluster(inputs, task, placement, list(done)):
            require_writable(filesystem(task.outputs.root)[1])  # another job may have taken the lock of a bucket
            done[key] = result
            images += _num_finished(result)
            on_progress("segmenting", images, max(images, inputs.images))
        total = merge_results(done[key] for key in sorted(done))
        progress.commit({**job, **asdict(total)})
    return total


def _num_finished(result: ChunkResult) -> int:
    return result.images + len(result.problems)


MAX_ACTOR_FAILURES = 3
BLOCK_BYTES = 1
"""Smaller than any chunk: Ray Data merges small blocks, and all chunks of a block would wait for the same actor."""

IMAGE = pa.struct([("name", pa.string()), ("encoded", pa.large_binary()), ("problem", pa.string())])
CHUNK_SCHEMA = pa.schema(
    [("shard", pa.int64()), ("chunk", pa.int64()), ("images", pa.list_(IMAGE)), ("error", pa.string())]
)
RESULT_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("shard", "chunk", "images")]
    + [("problems", pa.list_(pa.string())), ("error", pa.string()), ("is_data_error", pa.bool_())]
)
NO_IMAGES = ChunkResult(0)


def segment_on_cluster(
    inputs: Inputs, task: BatchTask, placement: WorkerResources, done: Iterable[Key]
) -> Iterator[tuple[Key, ChunkResult]]:
    """Yields the result of each chunk as it completes, and resumes a limited number of times if actors are lost.

    Args:
        inputs: inputs to be segmented.
        task: task that is applied to every image.
        placement: resources of the actors.
        done: keys of chunks that are done.

    Raises:
        DataError: the source cannot be read, or the results cannot be written.
        SegrayError: actors or nodes were lost too many times in a row, or an image could not be segmented for a reason
            other than the image.
    """
    finished, failures = set(done), 0
    while True:
        try:
            for key, result in _run_dataset(_ShardSource(inputs, finished), task, placement):
                finished.add(key)
                failures = 0
                yield key, result
        except RayTaskError:  # a defect, which would recur
            raise
        except RayError as error:
            failures += 1
            if failures > MAX_ACTOR_FAILURES:
                raise SegrayError(
                    f"actors failed {failures} times in a row, the last time with: {error}; check the memory of the "
                    "nodes, or use fewer --workers; the same command resumes the job."
                ) from error
        else:
            return


def _run_dataset(
    source: "_ShardSource", task: BatchTask, placement: WorkerResources
) -> Iterator[tuple[Key, ChunkResult]]:
    if not source.unfinished:
        return
    silence_libraries()
    dataset = ray.data.read_datasource(source, num_cpus=READ_CPUS, override_num_blocks=len(source.unfinished))
    context = dataset.context  # a separate copy: other datasets of this process keep their settings
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    task_ref = ray.put(task)
    with warnings.catch_warnings():
        # segray restarts lost actors. Ray does not, because it would print a warning for each restartable actor.
        # This argument is deprecated and goes away with Ray 2.64; there is no replacement yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        segmented = dataset.map_batches(
            _SegmentActor,
            fn_constructor_args=(task_ref, placement.device, placement.threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(placement.workers, source.num_chunks)),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
        )
    with translate_store_full():
        for row in segmented.iter_rows():
            if row["error"]:
                raise (DataError if row["is_data_error"] else SegrayError)(row["error"])
            yield (row["shard"], row["chunk"]), ChunkResult(row["images"], tuple(row["problems"]))


class _SegmentActor:
    """Segments one chunk per call."""

    def __init__(self, task_ref: Any, device: str, threads: int) -> None:
        self._start_error: SegrayError | None = None
        try:
            task: BatchTask = ray.get(task_ref)
            self._segment, self._progress = ChunkSegmenter(task, device, threads), JobProgress(task.outputs.root)
        except RayError:  # another node was lost
            raise
        except Exception as error:  # Ray would report the death of the actor without the reason
            self._start_error = SegrayError(
                f"an actor on {platform.node()} cannot load the model on {device} ({type(error).__name__}: "
                f"{first_line(error)}); the same command resumes the job."
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        key = row["shard"], row["chunk"]
        if self._start_error is not None:
            return _result_row(key, error=self._start_error)
        if row["error"]:
            return _result_row(key, error=DataError(row["error"]))
        chunk = [InputImage(**image) for image in row["images"]]
        try:
            result = self._segment(f"part-{format_key(key)}", chunk)
            self._progress.save(key, result)
        except SegrayError as error:
            if error.__cause__ is not None:
                logging.getLogger(__name__).error("the traceback of the following error", exc_info=error.__cause__)
            return _result_row(key, error=error)
        return _result_row(key, result)


def _result_row(key: Key, result: ChunkResult = NO_IMAGES, error: SegrayError | None = None) -> pa.Table:
    """Returns a row with the result of a chunk.

    Errors are returned as values, because Ray would print and retry a raised error.
    """
    row = {
        "shard": key[0],
        "chunk": key[1],
        "images": result.images,
        "problems": list(result.problems),
        "error": "" if error is None else str(error),
        "is_data_error": isinstance(error, DataError),
    }
    return pa.Table.from_pylist([row], schema=RESULT_SCHEMA)


class _ShardSource(Datasource):  # type: ignore[misc]
    """Ray Data source with one read task per shard."""

    def __init__(self, inputs: Inputs, done: Iterable[Key]) -> None:
        super().__init__()
        self._shards = inputs.shards
        self._done = defaultdict[int, set[int]](set)
        for shard_index, chunk_index in done:
            self._done[shard_index].add(chunk_index)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [_read_task(index, self._shards[index], self._done[index]) for index in self.unfinished]

    @property
    def unfinished(self) -> list[int]:
        """Indices of the shards that may have unfinished chunks."""
        return [
            index
            for index, shard in enumerate(self._shards)
            if not shard.is_length_known or shard.num_chunks > len(self._done[index])
        ]

    @property
    def num_chunks(self) -> int:
        """Number of chunks that may be unfinished, at least 1."""
        return max(1, sum(shard.num_chunks - len(self._done[index]) for index, shard in enumerate(self._shards)))


def _read_task(shard_index: int, shard: InputShard, done: set[int]) -> ReadTask:
    metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
    return ReadTask(lambda: _rows(shard_index, shard, frozenset(done)), metadata)


def _rows(shard_index: int, shard: InputShard, done: frozenset[int]) -> Iterator[pa.Table]:
    """Yields one row per chunk. All images of a chunk are in one row, so that Ray Data never splits a chunk."""
    try:
        for chunk_index, chunk in shard.chunks(done):
            yield _row(shard_index, chunk_index, [asdict(image) for image in chunk])
    except DataError as error:
        yield _row(shard_index, 0, [], str(error))


def _row(shard_index: int, chunk_index: int, images: list[dict[str, Any]], error: str = "") -> pa.Table:
    row = {"shard": shard_index, "chunk": chunk_index, "images": images, "error": error}
    return pa.Table.from_pylist([row], schema=CHUNK_SCHEMA)
