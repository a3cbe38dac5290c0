"""Validation in mid-run: exact counts over all ranks, and a picture of some predictions."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segray import pictures
from segray.counting import Wanted, count
from segray.data.pieces import Source
from segray.data.plan import rows_of
from segray.data.stream import evaluation_rows
from segray.inference import Mode, segment
from segray.places import picture_of
from segray.train.job import means
from segray.train.rank import Rank

MOST_SHOWN = 4


@dataclass(frozen=True)
class Found:
    """What a validation found, the same on every rank.

    Attributes:
        counts: (K, K) int64; rows are the truth.
        bad_rows: rows that were left out.
    """

    counts: Tensor
    bad_rows: int


def validate(rank: Rank, sign: Callable[[], None], stops: Callable[[], bool]) -> Found | None:
    """Returns the confusion counts over the whole validation split, or none if any rank had to stop.

    Rank 0 leaves a picture of its first images' predictions.

    Args:
        rank: this one.
        sign: called for every image.
        stops: whether this rank has to; asked before every image.
    """
    classes, first = rank.job.manifest.classes, list[Any]()
    bad_before, stopped = rank.bad_val.count, False

    def told() -> Iterator[Any]:
        nonlocal stopped
        for row in _rows(rank):
            sign()
            stopped = stops()
            if stopped:
                return
            if rank.rank == 0 and len(first) < MOST_SHOWN:
                first.append(row)
            yield row

    wanted, mode = Wanted(classes.num_classes, classes.ignore_id), Mode.of(rank.job.config)
    counts = torch.from_numpy(count(rank.learner.used, told(), wanted, rank.job.placement.threads, mode).confusion)
    whole = torch.cat([counts.flatten(), torch.tensor([rank.bad_val.count - bad_before, int(stopped)])])
    if rank.world > 1:
        whole = whole.to(rank.device)
        dist.all_reduce(whole)
    *_, bad_rows, stops_now = whole.tolist()
    if stops_now:
        return None
    if first:
        _show(rank, first)
    return Found(whole[:-2].view(counts.shape).cpu(), bad_rows)


def _rows(rank: Rank) -> Iterator[dict[str, Any]]:
    config, manifest = rank.job.config, rank.job.manifest
    source = Source(config.data.root, manifest.split(config.data.val_split))
    return evaluation_rows(
        source,
        rows_of(rank.rank, rank.world, source.split.rows),
        config.data.short_side,
        config.eval.align,
        means(config, rank.job.placement, rank.job.shared.get(config.data.val_split)),
        rank.bad_val,
    )


def _show(rank: Rank, rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        truth = row["mask"][0].cpu().numpy()
        images, mode = row["image"].to(rank.device), Mode.of(rank.job.config)
        found = segment(rank.learner.used, images, truth.shape, mode)[0].cpu().numpy()
        shown.append(pictures.Shown(row["image"][0].permute(1, 2, 0).cpu().numpy(), truth, found))
    try:
        pictures.save(shown, rank.job.manifest.classes, picture_of(rank.job.folder, rank.progress.step))
    except OSError as error:
        logging.getLogger(__name__).warning("the picture of step %d cannot be written: %s", rank.progress.step, error)
