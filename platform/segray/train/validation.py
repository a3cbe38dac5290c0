"""Validation in mid-run: exact counts over all ranks, and a picture of some predictions."""

from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from segray import pictures
from segray.data.pieces import Source
from segray.data.plan import rows_of
from segray.data.stream import evaluation_rows
from segray.places import picture_of
from segray.predict import count, segment
from segray.train.job import means
from segray.train.rank import Rank

MOST_SHOWN = 4


def validate(rank: Rank, sign: Callable[[], None]) -> Tensor:
    """Returns the confusion counts (K, K) int64 over the whole validation split, the same on every rank.

    Rank 0 leaves a picture of its first images' predictions.

    Args:
        rank: this one.
        sign: called for every image.
    """
    classes, first = rank.job.manifest.classes, list[Any]()

    def told() -> Iterator[Any]:
        for row in _rows(rank):
            sign()
            if rank.rank == 0 and len(first) < MOST_SHOWN:
                first.append(row)
            yield row

    counts = count(rank.learner.used, told(), classes.num_classes, classes.ignore_id, rank.job.placement.threads)
    if first:
        _show(rank, first)
    if rank.world > 1:
        counts = counts.to(rank.device)
        dist.all_reduce(counts)
    return counts.cpu()


def _rows(rank: Rank) -> Iterator[dict[str, Any]]:
    config, manifest = rank.job.config, rank.job.manifest
    source = Source(config.data.root, manifest.split(config.data.val_split))
    return evaluation_rows(
        source,
        rows_of(rank.rank, rank.world, source.split.rows),
        config.data.short_side,
        config.eval.align,
        means(config, rank.job.placement),
        rank.bad_val,
    )


def _show(rank: Rank, rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        truth = row["mask"][0].cpu().numpy()
        found = segment(rank.learner.used, row["image"].to(rank.device), truth.shape)[0].cpu().numpy()
        shown.append(pictures.Shown(row["image"][0].permute(1, 2, 0).cpu().numpy(), truth, found))
    pictures.save(shown, rank.job.manifest.classes, picture_of(rank.job.folder, rank.progress.step))
