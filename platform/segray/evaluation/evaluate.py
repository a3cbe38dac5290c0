"""Distributed evaluation of a model on a split. All available nodes share the rows, and each row is counted once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import WorkerResources, allocate_workers, default_num_workers
from segray.config import Config, EvalConfig, paths
from segray.core.classes import Classes
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import ConfigError, DataError, OutOfMemoryError, SegrayError, first_line, root_cause
from segray.data.loader import LoaderResources, evaluation_rows
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.sampler import rank_rows
from segray.evaluation.compare import Comparison, compare
from segray.evaluation.counter import Counts, CountSpec, accumulate_counts
from segray.evaluation.results import EvaluationResults, compute_results, results_to_dict
from segray.evaluation.slices import Slice, slice_labels
from segray.inference.segment import InferenceConfig
from segray.models import checkpoint
from segray.models.build import build_model


@dataclass(frozen=True)
class EvaluationRequest:
    """Request to evaluate models.

    Attributes:
        root: dataset folder or URI.
        split: name of the split.
        workers: number of tasks that share the rows; defaults to one per GPU, or one per node.
        device: "cpu", "cuda" or "auto".
        overrides: settings of the section `eval` by name, which override those of the training run's validation.
        slices: columns or regular expressions on ids that define additional scores by value, by slice name.
        group_by: slice whose values define groups of rows, which the bootstrap resamples as a unit; `None` resamples
            single images.
    """

    root: str
    split: str
    workers: int | None = None
    device: str = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    slices: Mapping[str, str | None] = field(default_factory=dict)
    group_by: Slice | None = None


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


def evaluate(folder: Path, request: EvaluationRequest) -> Evaluation:
    """Evaluates a checkpoint on a split.

    Args:
        folder: checkpoint folder.
        request: split, settings and resources of the evaluation.

    Raises:
        CheckpointError: the folder is not a complete checkpoint.
        DataError: the dataset or split does not exist, its classes differ from the model's, or a shard is damaged.
        CapacityError: the cluster does not have enough resources for the workers.
        ConfigError: `workers` is less than 1, or the settings are inconsistent.
    """
    if request.workers is not None and request.workers < 1:
        raise ConfigError(f"--workers is {request.workers}; expected at least 1.")
    meta, classes = checkpoint.load_meta(folder), checkpoint.load_classes(folder)
    config = checkpoint.load_config(folder).with_eval_overrides(request.overrides)
    settings, split = config.eval, request.split
    root = paths.absolute_path("data.root", request.root)
    manifest = read_manifest(root)
    source = SplitReader(root, manifest.split(split))
    _check(source, split, classes, manifest.classes)
    ids, slices = slice_labels(source, request.slices)
    group_by = dict([request.group_by]) if request.group_by else {}
    groups = next(iter(slice_labels(source, group_by)[1].values()), None)
    weights = checkpoint.load_model(folder).state_dict()
    resources = _allocate(request.workers, request.device)
    counts, bad_rows = _count(_EvaluationTask(config, classes, weights, source, resources))
    if len(bad_rows) == source.split.rows:
        raise DataError(f"no row of split '{split}' of {source.root} can be read; first error: {bad_rows[0]}")
    results = compute_results(
        counts, classes.names, ids, slices, groups=groups, absent=settings.absent_classes, beta=settings.beta
    )
    return Evaluation(
        counts=counts,
        results=results,
        ids=ids,
        classes=classes,
        split=split,
        rows=source.split.rows - len(bad_rows),
        bad_rows=tuple(bad_rows),
        root=source.root,
        dataset_digest=manifest.digest,
        step=meta.step,
        settings=settings,
        groups=groups,
    )


def _allocate(workers: int | None, device: str) -> WorkerResources:
    connect()
    nodes = potential_nodes()
    workers = workers or default_num_workers(nodes, device)
    return allocate_workers(nodes, workers, device, "--workers")


def compare_evaluations(candidate: Evaluation, baseline: Evaluation) -> Comparison:
    """Compares the evaluations of a candidate and a baseline model.

    Raises:
        DataError: the models were not evaluated on the same rows.
    """
    if (candidate.dataset_digest, candidate.split) != (baseline.dataset_digest, baseline.split):
        raise DataError("the models were evaluated on different data; expected the same split of the same dataset.")
    return compare(
        candidate.counts,
        baseline.counts,
        candidate.classes.names,
        candidate.ids,
        groups=candidate.groups,
        absent=candidate.settings.absent_classes,
    )


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
    results, split = evaluation.results, evaluation.split
    metrics = results.scores.all_named(split)
    metrics |= {f"{split}/miou_low": results.miou_interval.low, f"{split}/miou_high": results.miou_interval.high}
    if results.calibration:
        metrics |= {f"{split}/ece": results.calibration.ece, f"{split}/mce": results.calibration.mce}
    for kind, bands in (("boundary", results.boundary), ("trimap", results.trimap)):
        metrics |= {f"{split}/{kind}_{width}/miou": band.miou for width, band in bands.items()}
    for name, values in results.slices.items():
        metrics |= {f"{split}/{name}/{value}/miou": scores.miou for value, scores in values.items()}
    return {name: value for name, value in metrics.items() if isfinite(value)}


def _check(source: SplitReader, split: str, model_classes: Classes, dataset_classes: Classes) -> None:
    if source.split.rows == 0:
        raise DataError(f"split '{split}' of {source.root} is empty; expected at least one row.")
    if model_classes.names != dataset_classes.names:
        differences = sorted(set(model_classes.names) ^ set(dataset_classes.names))
        raise DataError(
            f"the model has {model_classes.num_classes} classes and {source.root} has {dataset_classes.num_classes}; "
            f"they differ in {', '.join(differences) or 'their order'}; evaluate on a dataset with the same classes."
        )


@dataclass(frozen=True)
class _EvaluationTask:
    config: Config
    classes: Classes
    weights: dict[str, Tensor]
    source: SplitReader
    resources: WorkerResources

    @property
    def count_spec(self) -> CountSpec:
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


def _count(task: _EvaluationTask) -> tuple[Counts, list[str]]:
    resources = task.resources
    # The task contains the weights, because other nodes may not have access to the checkpoint folder.
    shared = ray.put(task)
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "scheduling_strategy": "SPREAD"}
    remote_count = ray.remote(**options)(_count_share)
    try:
        parts = ray.get([remote_count.remote(shared, rank) for rank in range(resources.workers)])
    except RayError as error:
        raise root_cause(error) or SegrayError(f"evaluation failed: {error}") from error
    total = Counts.zeros(task.count_spec)
    for counts, _ in parts:
        total.merge(counts)
    return total, [line for _, lines in parts for line in lines]


def _count_share(task: _EvaluationTask, rank: int) -> tuple[Counts, list[str]]:
    resources, bad_rows = task.resources, list[str]()
    model = build_model(task.config, task.classes)
    model.load_state_dict(task.weights)
    rows = evaluation_rows(
        task.source,
        rank_rows(rank, resources.workers, task.source.split.rows),
        task.config.data.short_side,
        task.config.eval.size_multiple,
        LoaderResources(resources.read_cpus, resources.threads),
        lambda error: bad_rows.append(str(error)),
        task.classes.num_classes,
    )
    inference = InferenceConfig.from_config(task.config)
    try:
        model = model.to(torch.device(resources.device))
        return accumulate_counts(model, rows, task.count_spec, resources.threads, inference), bad_rows
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"a {resources.device} worker does not have enough memory for the evaluation ({first_line(error)}); use "
            "--eval.mode slide with a smaller --eval.crop or --eval.window_batch, or nodes with more memory."
        ) from error
