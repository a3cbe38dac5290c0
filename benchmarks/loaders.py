"""Loaders of training batches from the same parquet files: segray's stream, a torch DataLoader and a bare loop.

Each loader runs in a separate process and reports the time to the first batch and the time of the full pass.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.memory_monitor import PeakMemory, monitor_memory
from segray import config
from segray.cluster.connect import connect
from segray.data.augment.augmenter import Augmenter
from segray.data.augment.crop import PAD_COLOUR
from segray.data.images import decode_mask
from segray.data.loader import LoaderResources, shuffle_window_steps, training_batches
from segray.data.reader import COLUMNS, SplitReader
from segray.data.sampler import EpochPlan, row_seed

IGNORE_ID = 255


@dataclass(frozen=True)
class LoaderTask:
    """The task of one turn.

    Attributes:
        source: reader of the rows, in a local folder.
        crop: side of the crops in px.
        batch: number of crops per batch.
        batches: number of batches per turn.
        cores: number of processes or threads of each loader.
    """

    source: SplitReader
    crop: int
    batch: int
    batches: int
    cores: int


@dataclass(frozen=True)
class PassTiming:
    """The times of one turn: seconds to the first batch and to the last batch."""

    first_s: float
    total_s: float


Turn = Callable[[int], PassTiming]


@contextmanager
def segray_loader(task: LoaderTask) -> Iterator[Turn]:
    """Yields the turn function of segray's stream. Turn n continues where turn n-1 ended."""
    connect()
    plan = EpochPlan(task.source.rows_per_group(), task.batch, 0, shuffle_window_steps(task.source, task.batch))
    augment = Augmenter(config.build({"data.crop": task.crop}).data, IGNORE_ID)
    resources = LoaderResources(read_cpus=task.cores / 2, threads=task.cores)

    def turn(number: int) -> PassTiming:
        start = number * task.batches
        slots = range(task.batch)
        return _time_pass(
            lambda: training_batches(task.source, plan, slots, start, start + task.batches, augment, resources)
        )

    try:
        yield turn
    finally:
        ray.shutdown()


@contextmanager
def torch_dataloader(task: LoaderTask) -> Iterator[Turn]:
    """Yields the turn function of a standard DataLoader: rows in memory, `cores` workers."""
    rows = ParquetRows(task.source, task.crop)
    sampler = RandomSampler(rows, replacement=True, num_samples=task.batches * task.batch)
    # "fork" is the default on Linux. This process was spawned, and its workers would be spawned as well.
    loader: DataLoader[tuple[Any, Any]] = DataLoader(
        rows, batch_size=task.batch, sampler=sampler, num_workers=task.cores, multiprocessing_context="fork"
    )
    yield lambda number: _time_pass(lambda: iter(loader))


class ParquetRows(Dataset[tuple[Any, Any]]):
    """A map-style dataset like that of the torch tutorial: crops (3, S, S) and masks (S, S), uint8.

    Args:
        source: reader of the rows; they are held in memory.
        crop: S.
    """

    def __init__(self, source: SplitReader, crop: int) -> None:
        self.table = _read_table(source)
        self.pipeline = A.Compose(
            [
                A.RandomScale((-0.5, 1.0), p=1),
                A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=PAD_COLOUR, fill_mask=IGNORE_ID),
                A.RandomCrop(crop, crop),
                A.HorizontalFlip(),
                A.ColorJitter(p=0.5),
            ]
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        encoded = np.frombuffer(self.table["image"][index].as_py(), np.uint8)
        image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        mask = decode_mask(self.table["mask"][index].as_py())
        augmented = self.pipeline(image=image, mask=mask)
        return np.ascontiguousarray(augmented["image"].transpose(2, 0, 1)), augmented["mask"]


@contextmanager
def plain_loop(task: LoaderTask) -> Iterator[Turn]:
    """Yields the turn function of a loop that only decodes and augments rows in memory, like segray's stream."""
    context = get_context("spawn")
    with ProcessPoolExecutor(task.cores, context, initializer=_init_worker, initargs=(task,)) as pool:
        list(pool.map(_augment_rows, range(task.cores), [task.batch] * task.cores))  # starts and warms up the workers
        rows = [task.batches * task.batch // task.cores] * task.cores

        def turn(number: int) -> PassTiming:
            start = perf_counter()
            list(pool.map(_augment_rows, [number * task.cores + part for part in range(task.cores)], rows))
            return PassTiming(0.0, perf_counter() - start)

        yield turn


_worker_state: dict[str, Any] = {}


def _init_worker(task: LoaderTask) -> None:
    cv2.setNumThreads(1)
    augment = Augmenter(config.build({"data.crop": task.crop}).data, IGNORE_ID)
    _worker_state.update(table=_read_table(task.source), augment=augment)


def _augment_rows(seed: int, rows: int) -> None:
    table, augment = _worker_state["table"], _worker_state["augment"]
    for number in np.random.default_rng(seed).integers(0, table.num_rows, rows).tolist():
        row = table["image"][number].as_py(), table["mask"][number].as_py()
        augment([row], augment.draw(row_seed(seed, 0, number)))


def _read_table(source: SplitReader) -> pa.Table:
    shards = [f"{source.root}/{shard.path}" for shard in source.split.shards]
    return pa.concat_tables(pq.read_table(shard, columns=COLUMNS, memory_map=True) for shard in shards)


def _time_pass(start_batches: Callable[[], Iterator[Any]]) -> PassTiming:
    start = perf_counter()
    batches = start_batches()
    next(batches)
    first = perf_counter() - start
    for _ in batches:
        pass
    return PassTiming(first, perf_counter() - start)


LOADERS: dict[str, Callable[[LoaderTask], AbstractContextManager[Turn]]] = {
    "segray": segray_loader,
    "dataloader": torch_dataloader,
    "bare_loop": plain_loop,
}


def serve_turns(name: str, task: LoaderTask, pipe: Any) -> None:
    """Runs the turns requested through the pipe until it receives `None`. Runs in a separate process.

    A request consists of the number of the turn and whether to monitor the memory, which slows down the turn.
    """
    cv2.setNumThreads(1)  # rows are processed in parallel, not the pixels of one row
    with LOADERS[name](task) as turn:
        pipe.send("ready")
        while (request := pipe.recv()) is not None:
            number, monitored = request
            with monitor_memory(os.getpid()) if monitored else nullcontext(PeakMemory()) as peak:
                timing = turn(number)
            pipe.send((timing, peak))
