"""Distributed evaluation of a model on a split. All available nodes share the rows, and each row is counted once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.exceptions import root_cause
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import WorkerResources
from segray.config import Config, EvalConfig, paths
from segray.core.classes import Classes
from segray.core.errors import ConfigError, DataError, SegrayError
from segray.data.loader import LoaderResources, evaluation_rows
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.sampler import rank_rows
from segray.evaluation.compare import Comparison, compare
from segray.evaluation.counter import Counts, CountSpec, accumulate_counts
from segray.evaluation.results import EvaluationResults, compute_results, results_to_dict
from segray.inference.segment import InferenceConfig
from segray.models import checkpoint
from segray.models.build import build_model

SIZE_SLICE = "size"
UNKNOWN = "-"
"""Slice value of rows without a value in the column."""


@dataclass(frozen=True)
class Evaluation:
    """The subject, the counts and the results of an evaluation.

    Attributes:
        counts: counts of all images, and of each image.
        results: results computed from the counts.
        ids: ids of the rows, by row number.
        classes: classes of the model and the dataset.
        split: name of the evaluated split.
        rows: number of evaluated rows.
        bad_rows: reasons why other rows were not evaluated, one line each.
        root: root of the dataset.
        dataset_digest: digest of the dataset.
        step: training step of the checkpoint.
        settings: settings of inference and counting.
        groups: groups of the rows, resampled as a unit; `None` resamples single images.
    """

    counts: Counts
    results: EvaluationResults
    ids: dict[int, str]
    classes: Classes
    split: str
    rows: int
    bad_rows: tuple[str, ...]
    root: str
    dataset_digest: str
    step: int
    settings: EvalConfig
    groups: dict[int, str] | None = None


def evaluate(
    folder: Path,
    root: str,
    split: str,
    workers: int | None = None,
    device: str = "auto",
    asked: EvalConfig | None = None,
    slices: Mapping[str, str | None] | None = None,
    groups: Mapping[str, str | None] | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on a split.

    Args:
        folder: checkpoint folder.
        root: dataset folder or URI.
        split: name of the split.
        workers: number of tasks that share the rows; defaults to one per GPU, or one per node.
        device: "cpu", "cuda" or "auto".
        asked: settings that override those of the training run's validation.
        slices: columns or regular expressions on ids that define additional scores by value, by slice name.
        groups: a column or a regular expression as in `slices`, by which the bootstrap groups rows.

    Raises:
        CheckpointError: the folder is not a complete checkpoint.
        DataError: the dataset or split does not exist, its classes differ from the model's, or a shard is damaged.
        CapacityError: the cluster has not enough resources for the workers.
        ConfigError: `workers` is less than 1, or the settings are inconsistent.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; expected at least 1.")
    meta = checkpoint.load_meta(folder)
    config, classes = checkpoint.load_config(folder).with_eval_overrides(asked), checkpoint.load_classes(folder)
    manifest = read_manifest(paths.absolute_path("data.root", root))
    source = SplitReader(paths.absolute_path("data.root", root), manifest.split(split))
    _check(source.root, split, source, classes, manifest.classes)
    ids, sliced = slice_labels(source, slices or {})
    grouping = next(iter(slice_labels(source, groups or {})[1].values()), None)
    weights = checkpoint.load_model(folder).state_dict()
    counts, bad_rows = _count(_EvaluationTask(config, classes, weights, source, _placed(workers, device)))
    if len(bad_rows) == source.split.rows:
        raise DataError(f"no row of split '{split}' of {source.root} can be read, the first because: {bad_rows[0]}")
    settings = config.eval
    return Evaluation(
        counts=counts,
        results=compute_results(
            counts, classes.names, ids, sliced, groups=grouping, absent=settings.absent, beta=settings.beta
        ),
        ids=ids,
        classes=classes,
        split=split,
        rows=source.split.rows - len(bad_rows),
        bad_rows=tuple(bad_rows),
        root=source.root,
        dataset_digest=manifest.digest,
        step=meta.step,
        settings=settings,
        groups=grouping,
    )


def _placed(workers: int | None, device: str) -> WorkerResources:
    connect()
    nodes = potential_nodes()
    return resources.allocate_workers(
        nodes, workers or resources.default_num_workers(nodes, device), device, "--workers"
    )


def compare_evaluations(ours: Evaluation, theirs: Evaluation) -> Comparison:
    """Compares the evaluations of a candidate and a baseline model.

    Raises:
        DataError: the models were not evaluated on the same rows.
    """
    names, absent = ours.classes.names, ours.settings.absent
    if (ours.dataset_digest, ours.split) != (theirs.dataset_digest, theirs.split):
        raise DataError("the two models were evaluated on different data; expected one split of one dataset.")
    return compare(ours.counts, theirs.counts, names, ours.ids, groups=ours.groups, absent=absent)


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Returns an evaluation as a JSON-compatible dict: subject, counts and results."""
    return {
        "split": evaluation.split,
        "rows": evaluation.rows,
        "bad_rows": list(evaluation.bad_rows),
        "data": evaluation.root,
        "dataset_digest": evaluation.dataset_digest,
        "step": evaluation.step,
        "settings": evaluation.settings.model_dump(mode="json"),
        "confusion": evaluation.counts.confusion.tolist(),
        **results_to_dict(evaluation.results),
    }


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Returns all defined scores by metric name, e.g. `test/miou`."""
    found, split = evaluation.results, evaluation.split
    named = found.scores.all_named(split)
    named |= {f"{split}/miou_low": found.miou_interval.low, f"{split}/miou_high": found.miou_interval.high}
    if found.calibration:
        named |= {f"{split}/ece": found.calibration.ece, f"{split}/mce": found.calibration.mce}
    for kind, bands in (("boundary", found.boundary), ("trimap", found.trimap)):
        named |= {f"{split}/{kind}_{width}/miou": band.miou for width, band in bands.items()}
    for name, values in found.slices.items():
        named |= {f"{split}/{name}/{value}/miou": scores.miou for value, scores in values.items()}
    return {name: value for name, value in named.items() if isfinite(value)}


def slice_labels(
    source: SplitReader, slices: Mapping[str, str | None]
) -> tuple[dict[int, str], dict[str, dict[int, str]]]:
    """Returns the ids of all rows by row number, and the value of each row for each slice.

    Args:
        source: reader of the split.
        slices: regular expressions by slice name. The value is the first group of the match in the id, or the complete
            match. `None` selects the column of that name, or `size`, width x height.

    Raises:
        DataError: the column does not exist, the expression is invalid, or it does not match an id.
    """
    source.require_label_columns([name for name in slices if _is_column(name, slices)])
    table = source.read_columns(["id", "height", "width", *(name for name in slices if _is_column(name, slices))])
    ids = dict(enumerate(table["id"].to_pylist()))
    values = {}
    for name, pattern in slices.items():
        if pattern is not None:
            values[name] = {row: _in_id(name, pattern, text) for row, text in ids.items()}
        elif name == SIZE_SLICE:
            sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
            values[name] = {row: f"{width}x{height}" for row, (width, height) in enumerate(sizes)}
        else:
            values[name] = {
                row: UNKNOWN if value is None else str(value) for row, value in enumerate(table[name].to_pylist())
            }
    return ids, values


def _is_column(name: str, slices: Mapping[str, str | None]) -> bool:
    return slices[name] is None and name != SIZE_SLICE


def _in_id(name: str, pattern: str, text: str) -> str:
    try:
        match = re.search(pattern, text)
    except re.error as error:
        raise DataError(f"slice {name} is {pattern}, which is no regular expression ({error}).") from error
    if match is None:
        raise DataError(f"slice {name}: {pattern} does not occur in the id {text}.")
    return str(match[1] if match.re.groups else match[0])


def _check(root: str, split: str, source: SplitReader, ours: Classes, theirs: Classes) -> None:
    if source.split.rows == 0:
        raise DataError(f"split '{split}' of {root} is empty; expected at least one row.")
    if ours.names != theirs.names:
        only = sorted(set(ours.names) ^ set(theirs.names))
        raise DataError(
            f"the model knows {ours.num_classes} classes and {root} has {theirs.num_classes}; they differ in "
            f"{', '.join(only) or 'their order'}; evaluate on a dataset with the model's classes."
        )


@dataclass(frozen=True)
class _EvaluationTask:
    config: Config
    classes: Classes
    weights: dict[str, Tensor]
    source: SplitReader
    placement: WorkerResources

    @property
    def wanted(self) -> CountSpec:
        """Specification of the counts."""
        settings = self.config.eval
        return CountSpec(
            self.classes.num_classes,
            self.classes.ignore_id,
            calibration=settings.calibration,
            boundary=settings.boundary,
            trimap=settings.trimap,
            images=True,
        )


def _count(job: _EvaluationTask) -> tuple[Counts, list[str]]:
    placement = job.placement
    # The task contains the weights, because other nodes may not have access to the checkpoint folder.
    shared = ray.put(job)
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus, scheduling_strategy="SPREAD")(_count_share)
    try:
        parts = ray.get([task.remote(shared, rank) for rank in range(placement.workers)])
    except RayError as error:
        raise root_cause(error) or SegrayError(f"evaluation failed: {error}") from error
    total = Counts.zeros(job.wanted)
    for counts, _ in parts:
        total.merge(counts)
    return total, [line for _, lines in parts for line in lines]


def _count_share(job: _EvaluationTask, rank: int) -> tuple[Counts, list[str]]:
    placement, bad_rows = job.placement, list[str]()
    model = build_model(job.config, job.classes)
    model.load_state_dict(job.weights)
    rows = evaluation_rows(
        job.source,
        rank_rows(rank, placement.workers, job.source.split.rows),
        job.config.data.short_side,
        job.config.eval.align,
        LoaderResources(placement.read_cpus, placement.threads),
        lambda error: bad_rows.append(str(error)),
    )
    model = model.to(torch.device(placement.device))
    return accumulate_counts(
        model, rows, job.wanted, placement.threads, InferenceConfig.from_config(job.config)
    ), bad_rows
