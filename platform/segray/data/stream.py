"""Parquet to batches: each rank streams its share of the plan through a Ray Data pipeline of its own.

Read tasks fetch the row groups the plan names and pass encoded bytes on, in the plan's order; decoding and
augmenting happen on the threads of the process that uses the pixels. See docs/decisions.md for why not
`streaming_split`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import DataContext, Dataset
from ray.data.block import BlockMetadata
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.data.datasource import Datasource, ReadTask

from segray.data.augment import Augment, fit_to_model
from segray.data.images import decode_image, decode_mask
from segray.data.pieces import Piece, Source, raise_error_in, read_or_error
from segray.data.plan import Plan, row_seed
from segray.errors import DataError
from segray.quiet import quieten

Batch = dict[str, Any]

PIECE_BYTES = 16 * 2**20
READ_CPUS = 0.25


class _Pieces(Datasource):  # type: ignore[misc]
    """The Ray Data source whose read tasks are the pieces, in order."""

    def __init__(self, source: Source, pieces: list[Piece]) -> None:
        super().__init__()
        self._source = ray.put(source)  # one copy for all tasks; a manifest can be large
        self._pieces = pieces
        self._row_bytes = source.row_bytes

    def estimate_inmemory_data_size(self) -> int:
        return int(self._row_bytes * sum(len(piece.rows) for piece in self._pieces))

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [self._task(piece) for piece in self._pieces]

    def _task(self, piece: Piece) -> ReadTask:
        source = self._source
        size = int(self._row_bytes * len(piece.rows))
        metadata = BlockMetadata(num_rows=len(piece.rows), size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(lambda: [read_or_error(ray.get(source), piece)], metadata)


class _Collate(ArrowBatchCollateFn):  # type: ignore[misc]
    def __init__(self, function: Callable[[list[dict[str, Any]]], Batch]) -> None:
        super().__init__()
        self._function = function

    def __call__(self, table: pa.Table) -> Batch:
        raise_error_in(table)
        return self._function(table.to_pylist())


def training_batches(
    source: Source, plan: Plan, slots: range, start: int, stop: int, augment: Augment, read_cpus: float
) -> Iterator[Batch]:
    """Yields the batches of `slots` for steps start..stop-1.

    Args:
        source: the split to read.
        plan: its order.
        slots: the slots of the global batch this rank owns.
        start: first step, the data cursor of a run that continues.
        stop: the step after the last.
        augment: (image, mask, seed) to a crop; it stands outside Ray so that it can be tested alone.
        read_cpus: logical CPUs this rank may spend on read tasks.

    Yields:
        `image` (B, 3, H, W) uint8 RGB, `mask` (B, H, W) uint8 or int64, `row` (B,) int64; B = len(slots).
    """
    steps = max(1, int(PIECE_BYTES / (source.row_bytes * len(slots))))
    pieces = [_training_piece(plan, slots, first, min(first + steps, stop)) for first in range(start, stop, steps)]

    def collate(rows: list[dict[str, Any]]) -> Batch:
        return stack([_crop(row, augment) for row in rows])

    yield from _batches(source, pieces, collate, len(slots), read_cpus)


def _training_piece(plan: Plan, slots: range, start: int, stop: int) -> Piece:
    epochs, rows = (array.reshape(-1).tolist() for array in plan.share(start, stop, slots))
    seeds = tuple(row_seed(plan.seed, epoch, row) for epoch, row in zip(epochs, rows, strict=True))
    return Piece(tuple(rows), seeds)


def _crop(row: dict[str, Any], augment: Augment) -> Batch:
    image, mask = _decode(row)
    image, mask = augment(image, mask, row["seed"])
    return {"image": image, "mask": mask, "row": row["row"]}


def evaluation_rows(
    source: Source, rows: range, short_side: int | None, align: int, read_cpus: float
) -> Iterator[Batch]:
    """Yields the rows one by one, each once: `image` (1, 3, H', W') uint8 resized for the model, `mask` (1, H, W).

    Args:
        source: the split to read.
        rows: the row numbers of this rank.
        short_side: working short side in px, or none for the image's own.
        align: sides are rounded up to a multiple of this.
        read_cpus: logical CPUs this rank may spend on read tasks.
    """
    size = max(1, int(PIECE_BYTES / source.row_bytes))
    pieces = [_plain_piece(rows[first : first + size]) for first in range(0, len(rows), size)]

    def collate(found: list[dict[str, Any]]) -> Batch:
        return stack([_whole(row, short_side, align) for row in found])

    yield from _batches(source, pieces, collate, 1, read_cpus)


def _plain_piece(rows: range) -> Piece:
    return Piece(tuple(rows), (0,) * len(rows))


def _whole(row: dict[str, Any], short_side: int | None, align: int) -> Batch:
    image, mask = _decode(row)
    return {"image": fit_to_model(image, short_side, align), "mask": mask, "row": row["row"]}


def _decode(row: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        return decode_image(row["image"]), decode_mask(row["mask"])
    except DataError as error:
        raise DataError(f"row {row['row']} ({row['id']}): {error}") from error


def _batches(
    source: Source, pieces: list[Piece], collate: Callable[[list[dict[str, Any]]], Batch], batch: int, cpus: float
) -> Iterator[Batch]:
    """Yields the batches of all pieces, from one short Ray Data pipeline after another, the next one always begun.

    A pipeline with tasks left that waits for its consumer keeps its scheduling loop spinning, and that loop shares
    the process, and so the interpreter's lock, with the training. A pipeline whose tasks all start at once has read
    everything, and ended, long before its rows are used up.
    """
    quieten()
    if not pieces:
        return

    def opened(segment: list[Piece]) -> tuple[Batch, Iterator[Batch]]:
        found = iter(_pipeline(source, segment, collate, batch))
        return next(found), found

    at_once = max(1, int(cpus / READ_CPUS))
    segments = [pieces[first : first + at_once] for first in range(0, len(pieces), at_once)]
    with ThreadPoolExecutor(1, "segray-read-ahead") as pool:
        ahead = deque(pool.submit(opened, segment) for segment in segments[:1])
        for upcoming in [*segments[1:], None]:
            first, rest = ahead.popleft().result()
            if upcoming is not None:
                ahead.append(pool.submit(opened, upcoming))
            yield first
            yield from rest


def _pipeline(
    source: Source, pieces: list[Piece], collate: Callable[[list[dict[str, Any]]], Batch], batch: int
) -> Iterable[Batch]:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # the plan's order is the point
    context.op_resource_reservation_enabled = False  # one operator over a bounded segment has nobody to wait for
    dataset: Dataset = ray.data.read_datasource(
        _Pieces(source, pieces), num_cpus=READ_CPUS, override_num_blocks=len(pieces)
    )
    batches: Iterable[Batch] = dataset.iter_torch_batches(
        batch_size=batch, collate_fn=_Collate(collate), prefetch_batches=4
    )
    return batches


def stack(rows: list[Batch]) -> Batch:
    """Returns rows of (H, W, 3) images and (H, W) masks as one batch of tensors, channels first.

    Masks of uint16 become int64, the narrowest type torch indexes with beyond uint8.
    """
    images = np.stack([row["image"] for row in rows])
    masks = np.stack([row["mask"] for row in rows])
    if masks.dtype == np.uint16:
        masks = masks.astype(np.int64)
    return {
        "image": torch.from_numpy(images).permute(0, 3, 1, 2),  # (B, 3, H, W), channels-last in memory
        "mask": torch.from_numpy(masks),
        "row": torch.tensor([row["row"] for row in rows]),
    }
