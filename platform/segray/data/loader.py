"""Batch loading: each rank reads its slots of the epoch plan from parquet and makes the crops.

Ray Data reads the encoded bytes (see `prefetch`). Threads of the training process decode and augment them, or Ray tasks
on the CPUs of other nodes do (see `crops`). docs/decisions.md explains why `streaming_split` is not used.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from segray.core.classes import ignore_id
from segray.core.concurrency import map_ordered
from segray.core.errors import DataError
from segray.core.numbers import MIB
from segray.data.augment.augmenter import Augmenter
from segray.data.augment.crop import require_same_size
from segray.data.crops import Batch, SlotDraw, batches_on_cluster, batches_on_threads
from segray.data.images import decode_image, decode_mask, require_known_ids
from segray.data.prefetch import RowCache, SharedSplit, prefetch_rows
from segray.data.preprocess import preprocess
from segray.data.reader import SplitReader
from segray.data.sampler import EpochPlan, row_seed

OnBadRow = Callable[[DataError], None]

CACHE_BYTES = 64 * MIB


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


def raise_bad_row(error: DataError) -> None:
    """Raises the error; the default handler for rows that cannot be decoded."""
    raise error


def shuffle_window_steps(source: SplitReader, batch: int) -> int:
    """Returns the number of steps over which a slot shuffles its rows.

    It is the number of steps whose rows fit in the row cache, and at least the size of the largest row group. It
    depends only on the manifest and the global batch size, because it determines the order of the rows.
    """
    largest_group = max(source.rows_per_group(), default=1)
    return max(largest_group, int(CACHE_BYTES / max(1.0, source.row_bytes * batch)))


def training_batches(
    source: SplitReader,
    plan: EpochPlan,
    slots: range,
    start: int,
    stop: int,
    augmenter: Augmenter,
    resources: LoaderResources,
    on_bad: OnBadRow = raise_bad_row,
) -> Iterator[Batch]:
    """Yields the batches of `slots` for steps start..stop-1.

    Args:
        source: reader of the split.
        plan: order of the rows.
        slots: slots of the global batch that this rank owns.
        start: first step; the data cursor of a resumed run.
        stop: step after the last.
        augmenter: maker of the crops.
        resources: resources that this rank may use.
        on_bad: callback that receives the error of a row that cannot be made into a crop. If it returns, the slot holds
            a crop of ignored pixels and loading continues.

    Yields:
        Batches with `image` (B, 3, H, W) uint8 RGB, `mask` (B, H, W) uint8 or int64, and `row` (B,) int64, where B =
        len(slots).

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises. The message names the shard or row.
    """
    windows = (_draw_window(plan, window, slots, augmenter) for window in plan.windows(start, stop))
    # Both generators own threads, so they are closed here and not by the garbage collector.
    with closing(prefetch_rows(source, windows, resources.read_cpus, resources.shared_split)) as cached_windows:
        steps = ((draws, cache) for window_draws, cache in cached_windows for draws in window_draws)
        if resources.decode_tasks:
            # Limited to the CPUs that are kept free on a training node, so that every task can be scheduled.
            cpus = min(1.0, resources.read_cpus)
            results = batches_on_cluster(steps, augmenter, cpus, resources.decode_tasks, resources.pinned)
        else:
            results = batches_on_threads(steps, augmenter, resources.threads, resources.pinned)
        with closing(results):
            for batch, errors in results:
                for error in errors:
                    on_bad(_bad_row_error(source, error.row, error.row_id, error.reason))
                yield batch


def _draw_window(
    plan: EpochPlan, window: range, slots: range, augmenter: Augmenter
) -> tuple[list[list[SlotDraw]], list[int]]:
    """Returns the draws of the slots for each step of a window, and the rows that they need."""
    assignments = plan.assignments(window.start, window.stop, slots)
    draws = [
        [
            _draw_slot(plan, augmenter, step, slot, epoch, row, copy)
            for slot, epoch, row, copy in zip(slots, *step_assignments, strict=True)
        ]
        for step, *step_assignments in zip(window, *(array.tolist() for array in assignments), strict=True)
    ]
    return draws, sorted({row for step_draws in draws for draw in step_draws for row in draw.rows})


def _draw_slot(
    plan: EpochPlan, augmenter: Augmenter, step: int, slot: int, epoch: int, row: int, copy: int
) -> SlotDraw:
    seed = row_seed(plan.seed, epoch, row, copy)
    crop = augmenter.draw(seed)
    return SlotDraw((row, *plan.mix_partners(step, slot, crop.num_partners, seed)), crop)


def _bad_row_error(source: SplitReader, row: int, row_id: str, reason: str) -> DataError:
    return DataError(f"{source.describe_row(row)} ({row_id}): {reason}")


def evaluation_rows(
    source: SplitReader,
    rows: range,
    short_side: int | None,
    size_multiple: int,
    resources: LoaderResources,
    on_bad: OnBadRow = raise_bad_row,
    num_classes: int | None = None,
) -> Iterator[Batch]:
    """Yields each row once, as a batch of one image.

    Args:
        source: reader of the split.
        rows: row numbers of this rank.
        short_side: length of the short side during evaluation in px, or `None` to keep the size of the image.
        size_multiple: multiple to which the sides are rounded up.
        resources: resources that this rank may use.
        on_bad: callback that receives the error of a row that cannot be decoded. If it returns, the row is skipped.
        num_classes: number of classes K; a mask with another id is an error of its row. `None` accepts every id.

    Yields:
        Batches with `image` (1, 3, H', W') uint8 RGB, resized for the model, `mask` (1, H, W) uint8 or int64 at full
        size, and `row` (1,) int64.

    Raises:
        DataError: a shard cannot be read, or a row is bad and `on_bad` raises. The message names the shard or row.
    """
    chunk_rows = max(1, int(CACHE_BYTES / 4 / source.row_bytes)) if len(rows) else 1
    chunks = (rows[first : first + chunk_rows] for first in range(0, len(rows), chunk_rows))

    def load(row_and_cache: tuple[int, RowCache]) -> Batch | DataError:
        row, cache = row_and_cache
        try:
            return _decode_row(row, cache, short_side, size_multiple, num_classes)
        except DataError as error:
            return _bad_row_error(source, row, cache.row_id(row), str(error))

    prefetched = prefetch_rows(
        source, ((chunk, chunk) for chunk in chunks), resources.read_cpus, resources.shared_split
    )
    with closing(prefetched) as cached_chunks, ThreadPoolExecutor(resources.threads, "segray-rows") as pool:
        cached_rows = ((row, cache) for chunk, cache in cached_chunks for row in chunk)
        for result in map_ordered(pool, load, cached_rows, 2 * resources.threads + 1):
            if isinstance(result, DataError):
                on_bad(result)
            else:
                yield result


def _decode_row(
    row: int, cache: RowCache, short_side: int | None, size_multiple: int, num_classes: int | None
) -> Batch:
    encoded_image, encoded_mask = cache[row]
    pixels, mask = decode_image(encoded_image), decode_mask(encoded_mask)
    require_same_size(pixels, mask)
    if num_classes is not None:  # on a GPU, such an id would end the process without naming the row
        require_known_ids(mask, num_classes, ignore_id(num_classes))
    wide_mask = mask.astype(np.int64) if mask.dtype == np.uint16 else mask  # torch cannot index with uint16
    image = preprocess(pixels, short_side, size_multiple)
    return {"image": image, "mask": torch.from_numpy(wide_mask)[None], "row": torch.tensor([row])}
