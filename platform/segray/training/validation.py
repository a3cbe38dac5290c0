"""Validation during training: exact confusion counts over all ranks, and a preview of some predictions."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segray.config.paths import preview_path
from segray.core import visualize
from segray.data.loader import evaluation_rows
from segray.data.reader import SplitReader
from segray.data.sampler import rank_rows
from segray.evaluation.counter import CountSpec, accumulate_counts
from segray.inference.segment import InferenceConfig, segment
from segray.training.run_spec import loader_resources
from segray.training.worker_state import WorkerState

NUM_PREVIEWS = 4


@dataclass(frozen=True)
class ValidationCounts:
    """Result of a validation; equal on every rank.

    Attributes:
        counts: (K, K) int64 confusion counts; rows are the ground truth.
        bad_rows: number of skipped rows.
    """

    counts: Tensor
    bad_rows: int


def validate(rank: WorkerState, sign: Callable[[], None], stops: Callable[[], bool]) -> ValidationCounts | None:
    """Computes the confusion counts over the complete validation split.

    Rank 0 also saves a preview of the predictions for its first images.

    Args:
        rank: state of this worker.
        sign: callback called for every image.
        stops: function that returns `True` if this rank must stop; called before every image.

    Returns:
        Counts over all ranks, or `None` if any rank had to stop.
    """
    classes, first = rank.job.manifest.classes, list[Any]()
    bad_before, stopped = rank.val_bad_rows.count, False

    def told() -> Iterator[Any]:
        nonlocal stopped
        for row in _rows(rank):
            sign()
            stopped = stops()
            if stopped:
                return
            if rank.rank == 0 and len(first) < NUM_PREVIEWS:
                first.append(row)
            yield row

    wanted, mode = CountSpec(classes.num_classes, classes.ignore_id), InferenceConfig.from_config(rank.job.config)
    counts = torch.from_numpy(
        accumulate_counts(rank.learner.eval_model, told(), wanted, rank.job.placement.threads, mode).confusion
    )
    whole = torch.cat([counts.flatten(), torch.tensor([rank.val_bad_rows.count - bad_before, int(stopped)])])
    if rank.world > 1:
        whole = whole.to(rank.device)
        dist.all_reduce(whole)
    *_, bad_rows, stops_now = whole.tolist()
    if stops_now:
        return None
    if first:
        _show(rank, first)
    return ValidationCounts(whole[:-2].view(counts.shape).cpu(), bad_rows)


def _rows(rank: WorkerState) -> Iterator[dict[str, Any]]:
    config, manifest = rank.job.config, rank.job.manifest
    source = SplitReader(config.data.root, manifest.split(config.data.val_split))
    return evaluation_rows(
        source,
        rank_rows(rank.rank, rank.world, source.split.rows),
        config.data.short_side,
        config.eval.size_multiple,
        loader_resources(config, rank.job.placement, rank.job.shared_splits.get(config.data.val_split)),
        rank.val_bad_rows,
    )


def _show(rank: WorkerState, rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        truth = row["mask"][0].cpu().numpy()
        images, mode = row["image"].to(rank.device), InferenceConfig.from_config(rank.job.config)
        found = segment(rank.learner.eval_model, images, truth.shape, mode)[0].cpu().numpy()
        shown.append(visualize.PreviewRow(row["image"][0].permute(1, 2, 0).cpu().numpy(), truth, found))
    try:
        visualize.save_previews(shown, rank.job.manifest.classes, preview_path(rank.job.folder, rank.progress.step))
    except OSError as error:
        logging.getLogger(__name__).warning("the picture of step %d cannot be written: %s", rank.progress.step, error)
