"""Parquet to batches: each rank streams its share of the plan, and makes the crops where they are used.

Encoded bytes come through Ray Data (`fetch`); they are decoded and augmented by the threads of the process that
trains, or by tasks on the CPUs of other nodes. See docs/decisions.md for why not `streaming_split`.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from segray.core.errors import DataError
from segray.data.augment.augmenter import Augmenter, BadRowError
from segray.data.images import decode_image, decode_mask
from segray.data.prefetch import RowCache, SharedSplit, prefetch_rows, translate_store_full
from segray.data.reader import SplitReader
from segray.data.resize import resize_for_model
from segray.data.sampler import EpochPlan, row_seed

Batch = dict[str, Any]
Encoded = tuple[bytes, bytes]
OnBadRow = Callable[[DataError], None]

CACHE_BYTES = 64 * 2**20
PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class LoaderResources:
    """What a rank may use to make its batches.

    Attributes:
        read_cpus: logical CPUs for read tasks.
        threads: threads that decode.
        decode_tasks: crops of so many steps are made at once by tasks on the cluster; 0 makes them on the threads.
        pinned: whether batches lie in page-locked memory, from which a GPU copies while it computes.
        shared_split: the split's rows, if they lie in the cluster's memory already.
    """

    read_cpus: float
    threads: int
    decode_tasks: int = 0
    pinned: bool = False
    shared_split: SharedSplit | None = None


@dataclass(frozen=True)
class _Draw:
    """One slot of one step: a row, what it is mixed with, and the seed of it all."""

    rows: tuple[int, ...]
    seed: int


def raise_bad_row(error: DataError) -> None:
    """Raises the error: what to do with a row that cannot be decoded, unless told otherwise."""
    raise error


def shuffle_window_steps(source: SplitReader, batch: int) -> int:
    """Returns the steps over which a slot shuffles: as many as a shelf holds rows for, or a row group's rows.

    Decided by the manifest alone: it is part of the order.
    """
    group = max(source.rows_per_group(), default=1)
    return max(group, int(CACHE_BYTES / max(1.0, source.row_bytes * batch)))


def training_batches(
    source: SplitReader,
    plan: EpochPlan,
    slots: range,
    start: int,
    stop: int,
    augment: Augmenter,
    means: LoaderResources,
    on_bad: OnBadRow = raise_bad_row,
) -> Iterator[Batch]:
    """Yields the batches of `slots` for steps start..stop-1.

    Args:
        source: the split to read.
        plan: its order.
        slots: the slots of the global batch this rank owns.
        start: first step, the data cursor of a run that continues.
        stop: the step after the last.
        augment: makes a crop of encoded rows and a seed.
        means: what this rank may use.
        on_bad: called with the error of a row that cannot be made into a crop; if it returns, the slot holds a
            crop of ignored pixels, and the step goes on.

    Yields:
        `image` (B, 3, H, W) uint8 RGB, `mask` (B, H, W) uint8 or int64, `row` (B,) int64; B = len(slots).

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises; both are named.
    """
    runs = (_run(plan, window, slots, augment) for window in plan.windows(start, stop))
    make = _on_cluster if means.decode_tasks else _on_threads
    # Closed here, not when somebody collects the garbage: both have threads.
    with closing(prefetch_rows(source, runs, means.read_cpus, means.shared_split)) as filled:
        steps = ((draws, shelf) for window, shelf in filled for draws in window)
        with closing(make(steps, augment, means)) as made:
            for batch, errors in made:
                for row, identity, error in errors:
                    on_bad(DataError(f"{source.describe_row(row)} ({identity}): {error}"))
                yield batch


def _run(plan: EpochPlan, window: range, slots: range, augment: Augmenter) -> tuple[list[list[_Draw]], list[int]]:
    """Returns what the slots draw in each step of a window, and the rows that takes."""
    share = plan.assignments(window.start, window.stop, slots)
    draws = []
    for step, *values in zip(window, *(part.tolist() for part in share), strict=True):
        draws.append(
            [
                _draw(plan, augment, step, slot, epoch, row, copy)
                for slot, epoch, row, copy in zip(slots, *values, strict=True)
            ]
        )
    return draws, sorted({row for step_draws in draws for draw in step_draws for row in draw.rows})


def _draw(plan: EpochPlan, augment: Augmenter, step: int, slot: int, epoch: int, row: int, copy: int) -> _Draw:
    seed = row_seed(plan.seed, epoch, row, copy)
    companions = plan.mix_partners(step, slot, augment.num_mix_partners(seed), seed)
    return _Draw((row, *companions), seed)


Steps = Iterator[tuple[list[_Draw], RowCache]]
Fault = tuple[int, str]  # which of a draw's rows is bad, and why
Errors = list[tuple[int, str, str]]  # row, its id, and what is wrong


def _on_threads(steps: Steps, augment: Augmenter, means: LoaderResources) -> Generator[tuple[Batch, Errors]]:
    """Yields the batches, made by this process's threads, some of them ahead."""

    def make(batch: Batch, slot: int, draw: _Draw, shelf: RowCache) -> Fault | None:
        encoded = [shelf[row] for row in draw.rows]
        return _write(batch["image"].numpy(), batch["mask"].numpy(), slot, augment, encoded, draw.seed)

    def begin(draws: list[_Draw], shelf: RowCache) -> Callable[[], tuple[Batch, Errors]]:
        batch = _empty(draws, augment, means.pinned)
        made = [pool.submit(make, batch, slot, draw, shelf) for slot, draw in enumerate(draws)]
        return lambda: (_channels_first(batch), _errors(draws, shelf, [one.result() for one in made]))

    cv2.setNumThreads(1)  # rows are worked on side by side, not the pixels of one
    with ThreadPoolExecutor(means.threads, "segray-crops") as pool:
        yield from _ahead((begin(*step) for step in steps), PREFETCH_BATCHES)


def _on_cluster(steps: Steps, augment: Augmenter, means: LoaderResources) -> Generator[tuple[Batch, Errors]]:
    """Yields the batches, made by tasks on whichever nodes have CPUs to spare."""
    # No more than what is kept free beside a trainer, so that a task always finds a place.
    cpus = min(1.0, means.read_cpus)
    task = ray.remote(num_cpus=cpus, scheduling_strategy="SPREAD")(_crops)
    with translate_store_full():
        shared = ray.put(augment)

    def begin(draws: list[_Draw], shelf: RowCache) -> Callable[[], tuple[Batch, Errors]]:
        encoded = [[shelf[row] for row in draw.rows] for draw in draws]
        with translate_store_full():
            reference = task.remote(shared, encoded, [draw.seed for draw in draws])
        return lambda: finish(draws, shelf, reference)

    def finish(draws: list[_Draw], shelf: RowCache, reference: Any) -> tuple[Batch, Errors]:
        with translate_store_full():
            images, masks, faults = ray.get(reference)
        batch = _empty(draws, augment, means.pinned)
        np.copyto(batch["image"].numpy(), images)
        np.copyto(batch["mask"].numpy(), masks)
        return _channels_first(batch), _errors(draws, shelf, faults)

    yield from _ahead((begin(*step) for step in steps), means.decode_tasks)


def _crops(
    augment: Augmenter, encoded: list[list[Encoded]], seeds: list[int]
) -> tuple[NDArray[np.uint8], NDArray[Any], list[Fault | None]]:
    """Returns the crops of one step, and what was wrong with each; a task of the cluster."""
    cv2.setNumThreads(1)
    image, mask = augment.ignored_crop()
    images, masks = (np.empty((len(seeds), *part.shape), part.dtype) for part in (image, mask))
    faults = [
        _write(images, masks, slot, augment, rows, seed)
        for slot, (rows, seed) in enumerate(zip(encoded, seeds, strict=True))
    ]
    return images, masks, faults


def _write(
    images: NDArray[np.uint8], masks: NDArray[Any], slot: int, augment: Augmenter, rows: list[Encoded], seed: int
) -> Fault | None:
    """Writes a crop into its slot of the batch, a blank one if it cannot be made; returns what is wrong then."""
    fault = None
    try:
        crop = augment(rows, seed)
    except BadRowError as error:
        crop, fault = augment.ignored_crop(), (error.index, str(error))
    images[slot], masks[slot] = crop
    return fault


def _errors(draws: list[_Draw], shelf: RowCache, faults: Sequence[Fault | None]) -> Errors:
    found = [(draw.rows[fault[0]], fault[1]) for draw, fault in zip(draws, faults, strict=True) if fault]
    return [(row, shelf.row_id(row), why) for row, why in found]


def _ahead(begun: Iterator[Callable[[], Any]], ready: int) -> Iterator[Any]:
    """Yields what each call returns, in order, with so many begun before their turn."""
    waiting: deque[Callable[[], Any]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > ready:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def _empty(draws: list[_Draw], augment: Augmenter, pinned: bool) -> Batch:
    """Returns room for a batch; masks beyond uint8 are int64, the next type torch indexes with."""
    shape = len(draws), augment.crop_px, augment.crop_px
    ids = torch.uint8 if augment.ignore_id <= 255 else torch.int64
    return {
        "image": torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=pinned),
        "mask": torch.empty(shape, dtype=ids, pin_memory=pinned),
        "row": torch.tensor([draw.rows[0] for draw in draws]),
    }


def _channels_first(batch: Batch) -> Batch:
    return batch | {"image": batch["image"].permute(0, 3, 1, 2)}  # (B, 3, H, W), channels-last in memory


def evaluation_rows(
    source: SplitReader,
    rows: range,
    short_side: int | None,
    align: int,
    means: LoaderResources,
    on_bad: OnBadRow = raise_bad_row,
) -> Iterator[Batch]:
    """Yields the rows one by one, each once: `image` (1, 3, H', W') uint8 resized for the model, `mask` (1, H, W).

    Args:
        source: the split to read.
        rows: the row numbers of this rank.
        short_side: working short side in px, or none for the image's own.
        align: sides are rounded up to a multiple of this.
        means: what this rank may use.
        on_bad: called with the error of a row that cannot be decoded; if it returns, the row is left out.

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises; both are named.
    """
    size = max(1, int(CACHE_BYTES / 4 / source.row_bytes)) if len(rows) else 1
    runs = ((part, part) for part in (rows[first : first + size] for first in range(0, len(rows), size)))

    def make(row: int, shelf: RowCache) -> Batch | DataError:
        try:
            return _whole(row, shelf, short_side, align)
        except DataError as error:
            return DataError(f"{source.describe_row(row)} ({shelf.row_id(row)}): {error}")

    filling = closing(prefetch_rows(source, runs, means.read_cpus, means.shared_split))
    with filling as filled, ThreadPoolExecutor(means.threads, "segray-rows") as pool:
        wanted = ((row, shelf) for part, shelf in filled for row in part)
        begun: Iterator[Future[Batch | DataError]] = (pool.submit(make, *one) for one in wanted)
        for found in _ahead((one.result for one in begun), 2 * means.threads):
            if isinstance(found, DataError):
                on_bad(found)
            else:
                yield found


def _whole(row: int, shelf: RowCache, short_side: int | None, align: int) -> Batch:
    image, mask = shelf[row]
    pixels, ids = resize_for_model(decode_image(image), short_side, align), decode_mask(mask)
    wide = ids.astype(np.int64) if ids.dtype == np.uint16 else ids
    return {
        "image": torch.from_numpy(pixels).permute(2, 0, 1)[None],
        "mask": torch.from_numpy(wide)[None],
        "row": torch.tensor([row]),
    }
