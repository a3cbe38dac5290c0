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


def validate(
    state: WorkerState, on_image: Callable[[], None], must_stop: Callable[[], bool]
) -> ValidationCounts | None:
    """Computes the confusion counts over the complete validation split.

    Rank 0 also saves a preview of the predictions for its first images.

    Args:
        state: state of this worker.
        on_image: callback called for every image.
        must_stop: function that returns `True` if this rank must stop; called before every image.

    Returns:
        Counts over all ranks, or `None` if any rank had to stop.
    """
    classes, preview_rows = state.job.manifest.classes, list[Any]()
    bad_before, stopped = state.val_bad_rows.count, False

    def rows() -> Iterator[Any]:
        nonlocal stopped
        for row in _rows(state):
            on_image()
            stopped = must_stop()
            if stopped:
                return
            if state.rank == 0 and len(preview_rows) < NUM_PREVIEWS:
                preview_rows.append(row)
            yield row

    spec, mode = CountSpec(classes.num_classes, classes.ignore_id), InferenceConfig.from_config(state.job.config)
    counts = torch.from_numpy(
        accumulate_counts(state.train_state.eval_model, rows(), spec, state.job.placement.threads, mode).confusion
    )
    sums = torch.cat([counts.flatten(), torch.tensor([state.val_bad_rows.count - bad_before, int(stopped)])])
    if state.world > 1:
        sums = sums.to(state.device)
        dist.all_reduce(sums)
    *_, bad_rows, any_stopped = sums.tolist()
    if any_stopped:
        return None
    if preview_rows:
        _save_preview(state, preview_rows)
    return ValidationCounts(sums[:-2].view(counts.shape).cpu(), bad_rows)


def _rows(state: WorkerState) -> Iterator[dict[str, Any]]:
    config, manifest = state.job.config, state.job.manifest
    source = SplitReader(config.data.root, manifest.split(config.data.val_split))
    return evaluation_rows(
        source,
        rank_rows(state.rank, state.world, source.split.rows),
        config.data.short_side,
        config.eval.size_multiple,
        loader_resources(config, state.job.placement, state.job.shared_splits.get(config.data.val_split)),
        state.val_bad_rows,
        manifest.classes.num_classes,
    )


def _save_preview(state: WorkerState, rows: list[dict[str, Any]]) -> None:
    """Writes the preview of this step. No error of it ends the run, because only people look at it."""
    classes, file = state.job.manifest.classes, preview_path(state.job.folder, state.progress.step)
    try:
        visualize.save_previews([_preview_row(state, row) for row in rows], classes, file)
    except Exception as error:
        logging.getLogger(__name__).warning(
            "the preview of step %d cannot be written (%s: %s)", state.progress.step, type(error).__name__, error
        )


def _preview_row(state: WorkerState, row: dict[str, Any]) -> visualize.PreviewRow:
    truth = row["mask"][0].cpu().numpy()
    images, mode = row["image"].to(state.device), InferenceConfig.from_config(state.job.config)
    prediction = segment(state.train_state.eval_model, images, truth.shape, mode)[0].cpu().numpy()
    return visualize.PreviewRow(row["image"][0].permute(1, 2, 0).cpu().numpy(), truth, prediction)
