"""Making of training batches from encoded rows, on the threads of this process or in Ray tasks on other nodes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from segray.data.augment.augmenter import Augmenter, BadRowError, CropDraw
from segray.data.prefetch import RowCache, translate_store_full

PREFETCH_BATCHES = 4

Batch = dict[str, Any]
Encoded = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class SlotDraw:
    """One slot of one step: the row with its mix partners, and the random choices of the crop."""

    rows: tuple[int, ...]
    crop: CropDraw


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be made into a crop: its number, its id and the reason."""

    row: int
    row_id: str
    reason: str


Steps = Iterator[tuple[list[SlotDraw], RowCache]]
BatchResult = tuple[Batch, list[RowError]]
SlotError = tuple[int, str]  # index of the bad row within the draw, and the reason


def batches_on_threads(steps: Steps, augmenter: Augmenter, threads: int, pinned: bool) -> Generator[BatchResult]:
    """Yields the batch and the bad rows of each step, in order; threads make up to PREFETCH_BATCHES batches ahead."""

    def make_crop(batch: Batch, slot: int, draw: SlotDraw, cache: RowCache) -> SlotError | None:
        encoded = [cache[row] for row in draw.rows]
        return _write_crop(batch["image"].numpy(), batch["mask"].numpy(), slot, augmenter, encoded, draw.crop)

    def start(draws: list[SlotDraw], cache: RowCache) -> Callable[[], BatchResult]:
        batch = _allocate_batch(draws, augmenter, pinned)
        futures = [pool.submit(make_crop, batch, slot, draw, cache) for slot, draw in enumerate(draws)]
        return lambda: (_channels_first(batch), _row_errors(draws, cache, [future.result() for future in futures]))

    cv2.setNumThreads(1)  # the pool parallelizes over rows, so OpenCV does not parallelize within an image
    with ThreadPoolExecutor(threads, "segray-crops") as pool:
        yield from _results_in_order((start(*step) for step in steps), PREFETCH_BATCHES)


def batches_on_cluster(
    steps: Steps, augmenter: Augmenter, cpus: float, num_tasks: int, pinned: bool
) -> Generator[BatchResult]:
    """Yields the batch and the bad rows of each step, in order; up to `num_tasks` Ray tasks make batches ahead.

    Args:
        steps: draws of each step and the cache that holds their rows.
        augmenter: maker of the crops.
        cpus: logical CPUs of each task.
        num_tasks: maximum number of concurrent tasks; each makes the crops of one step.
        pinned: `True` to allocate batches in page-locked memory.
    """
    task = ray.remote(num_cpus=cpus, scheduling_strategy="SPREAD")(_make_crops)
    with translate_store_full():
        augmenter_ref = ray.put(augmenter)

    def start(draws: list[SlotDraw], cache: RowCache) -> Callable[[], BatchResult]:
        encoded = [[cache[row] for row in draw.rows] for draw in draws]
        with translate_store_full():
            reference = task.remote(augmenter_ref, encoded, [draw.crop for draw in draws])
        return lambda: finish(draws, cache, reference)

    def finish(draws: list[SlotDraw], cache: RowCache, reference: Any) -> BatchResult:
        with translate_store_full():
            images, masks, errors = ray.get(reference)
        batch = _allocate_batch(draws, augmenter, pinned)
        np.copyto(batch["image"].numpy(), images)
        np.copyto(batch["mask"].numpy(), masks)
        return _channels_first(batch), _row_errors(draws, cache, errors)

    yield from _results_in_order((start(*step) for step in steps), num_tasks)


def _make_crops(
    augmenter: Augmenter, encoded: list[list[Encoded]], draws: list[CropDraw]
) -> tuple[NDArray[np.uint8], NDArray[Any], list[SlotError | None]]:
    """Makes the crops of one step and returns them with the error of each; runs as a Ray task."""
    cv2.setNumThreads(1)
    image, mask = augmenter.ignored_crop()
    images, masks = (np.empty((len(draws), *array.shape), array.dtype) for array in (image, mask))
    errors = [
        _write_crop(images, masks, slot, augmenter, rows, draw)
        for slot, (rows, draw) in enumerate(zip(encoded, draws, strict=True))
    ]
    return images, masks, errors


def _write_crop(
    images: NDArray[np.uint8],
    masks: NDArray[Any],
    slot: int,
    augmenter: Augmenter,
    encoded: list[Encoded],
    draw: CropDraw,
) -> SlotError | None:
    """Writes a crop into its slot of the batch and returns `None`.

    If the crop cannot be made, writes an ignored crop and returns the error.
    """
    slot_error = None
    try:
        crop = augmenter(encoded, draw)
    except BadRowError as error:
        crop, slot_error = augmenter.ignored_crop(), (error.index, str(error))
    images[slot], masks[slot] = crop
    return slot_error


def _row_errors(draws: list[SlotDraw], cache: RowCache, slot_errors: Sequence[SlotError | None]) -> list[RowError]:
    pairs = zip(draws, slot_errors, strict=True)
    bad_rows = [(draw.rows[slot_error[0]], slot_error[1]) for draw, slot_error in pairs if slot_error]
    return [RowError(row, cache.row_id(row), reason) for row, reason in bad_rows]


def _results_in_order(started: Iterator[Callable[[], BatchResult]], ahead: int) -> Iterator[BatchResult]:
    """Yields the result of each call in order, with up to `ahead` calls started ahead."""
    pending: deque[Callable[[], BatchResult]] = deque()
    for finish in started:
        pending.append(finish)
        if len(pending) > ahead:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _allocate_batch(draws: list[SlotDraw], augmenter: Augmenter, pinned: bool) -> Batch:
    """Allocates a batch; masks that do not fit in uint8 are int64, the next dtype that torch can index with."""
    shape = len(draws), augmenter.crop_px, augmenter.crop_px
    mask_dtype = torch.uint8 if augmenter.ignore_id <= 255 else torch.int64
    return {
        "image": torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=pinned),
        "mask": torch.empty(shape, dtype=mask_dtype, pin_memory=pinned),
        "row": torch.tensor([draw.rows[0] for draw in draws]),
    }


def _channels_first(batch: Batch) -> Batch:
    return batch | {"image": batch["image"].permute(0, 3, 1, 2)}  # (B, 3, H, W), channels-last in memory
