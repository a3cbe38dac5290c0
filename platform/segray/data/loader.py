"""Batch loading: each rank reads its slots of the epoch plan from parquet and makes the crops.

Ray Data reads the encoded bytes (see `prefetch`). Threads of the training process decode and augment them, or Ray tasks
on the CPUs of other nodes do. docs/decisions.md explains why `streaming_split` is not used.
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
    """Resources that a rank may use to make its batches.

    Attributes:
        read_cpus: logical CPUs for read tasks.
        threads: number of decoding threads.
        decode_tasks: number of steps whose crops Ray tasks make concurrently; 0 makes the crops on the threads of this
            process.
        pinned: `True` to allocate batches in page-locked memory, which lets the GPU copy while it computes.
        shared_split: rows of the split in Ray's object store, or `None` to read them from the shards.
    """

    read_cpus: float
    threads: int
    decode_tasks: int = 0
    pinned: bool = False
    shared_split: SharedSplit | None = None


@dataclass(frozen=True)
class _Draw:
    """One slot of one step: the row, its mix partners and the seed."""

    rows: tuple[int, ...]
    seed: int


def raise_bad_row(error: DataError) -> None:
    """Raises the error; the default handler for rows that cannot be decoded."""
    raise error


def shuffle_window_steps(source: SplitReader, batch: int) -> int:
    """Returns the number of steps over which a slot shuffles its rows.

    It is the number of steps whose rows fit in the row cache, and at least the size of the largest row group. It
    depends only on the manifest and the global batch size, because it determines the order of the rows.
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
        source: reader of the split.
        plan: order of the rows.
        slots: slots of the global batch that this rank owns.
        start: first step; the data cursor of a resumed run.
        stop: step after the last.
        augment: callable that makes a crop from encoded rows and a seed.
        means: resources that this rank may use.
        on_bad: callback that receives the error of a row that cannot be made into a crop. If it returns, the slot holds
            a crop of ignored pixels and loading continues.

    Yields:
        Batches with `image` (B, 3, H, W) uint8 RGB, `mask` (B, H, W) uint8 or int64, and `row` (B,) int64, where B =
        len(slots).

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises. The message names the shard or row.
    """
    runs = (_run(plan, window, slots, augment) for window in plan.windows(start, stop))
    make = _on_cluster if means.decode_tasks else _on_threads
    # Both generators own threads, so they are closed here and not by the garbage collector.
    with closing(prefetch_rows(source, runs, means.read_cpus, means.shared_split)) as filled:
        steps = ((draws, shelf) for window, shelf in filled for draws in window)
        with closing(make(steps, augment, means)) as made:
            for batch, errors in made:
                for row, identity, error in errors:
                    on_bad(DataError(f"{source.describe_row(row)} ({identity}): {error}"))
                yield batch


def _run(plan: EpochPlan, window: range, slots: range, augment: Augmenter) -> tuple[list[list[_Draw]], list[int]]:
    """Returns the draws of the slots for each step of a window, and the rows that they need."""
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
Fault = tuple[int, str]  # index of the bad row within the draw, and the reason
Errors = list[tuple[int, str, str]]  # row, its id and the reason


def _on_threads(steps: Steps, augment: Augmenter, means: LoaderResources) -> Generator[tuple[Batch, Errors]]:
    """Yields the batches in order; the threads of this process make up to PREFETCH_BATCHES of them ahead."""

    def make(batch: Batch, slot: int, draw: _Draw, shelf: RowCache) -> Fault | None:
        encoded = [shelf[row] for row in draw.rows]
        return _write(batch["image"].numpy(), batch["mask"].numpy(), slot, augment, encoded, draw.seed)

    def begin(draws: list[_Draw], shelf: RowCache) -> Callable[[], tuple[Batch, Errors]]:
        batch = _empty(draws, augment, means.pinned)
        made = [pool.submit(make, batch, slot, draw, shelf) for slot, draw in enumerate(draws)]
        return lambda: (_channels_first(batch), _errors(draws, shelf, [one.result() for one in made]))

    cv2.setNumThreads(1)  # the pool parallelizes over rows, so OpenCV does not parallelize within an image
    with ThreadPoolExecutor(means.threads, "segray-crops") as pool:
        yield from _ahead((begin(*step) for step in steps), PREFETCH_BATCHES)


def _on_cluster(steps: Steps, augment: Augmenter, means: LoaderResources) -> Generator[tuple[Batch, Errors]]:
    """Yields the batches in order; Ray tasks on nodes with free CPUs make them."""
    # Limited to the CPUs that are kept free on a training node, so that every task can be scheduled.
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
    """Makes the crops of one step and returns them with the fault of each; runs as a Ray task."""
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
    """Writes a crop into its slot of the batch and returns `None`.

    If the crop cannot be made, writes an ignored crop and returns the fault.
    """
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
    """Yields the result of each call in order, with up to `ready` calls started ahead."""
    waiting: deque[Callable[[], Any]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > ready:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def _empty(draws: list[_Draw], augment: Augmenter, pinned: bool) -> Batch:
    """Allocates a batch; masks that do not fit in uint8 are int64, the next dtype that torch can index with."""
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
    """Yields each row once, as a batch of one image.

    Args:
        source: reader of the split.
        rows: row numbers of this rank.
        short_side: length of the short side during evaluation in px, or `None` to keep the size of the image.
        align: multiple to which the sides are rounded up.
        means: resources that this rank may use.
        on_bad: callback that receives the error of a row that cannot be decoded. If it returns, the row is skipped.

    Yields:
        Batches with `image` (1, 3, H', W') uint8 RGB, resized for the model, `mask` (1, H, W) uint8 or int64 at full
        size, and `row` (1,) int64.

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises. The message names the shard or row.
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
