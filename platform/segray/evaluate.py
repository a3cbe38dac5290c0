"""Counting a model's hits and misses on a split, on as many nodes as there are, each row exactly once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from segray import capacity, checkpoint, cluster, places
from segray.capacity import Placement
from segray.classes import Classes
from segray.config import Config
from segray.data.pieces import Source
from segray.data.plan import rows_of
from segray.data.schema import read_manifest
from segray.data.stream import Means, evaluation_rows
from segray.errors import ConfigError, DataError, SegrayError
from segray.metrics import Confusion, Scores, scores
from segray.predict import count


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated on what, and the counts.

    Attributes:
        confusion: (K, K) int64, rows are the truth.
        scores: what the counts say.
        split: evaluated split.
        rows: how many rows were evaluated.
        dataset_digest: of the dataset.
        step: of the checkpoint.
    """

    confusion: Confusion
    scores: Scores
    split: str
    rows: int
    dataset_digest: str
    step: int


def evaluate(folder: Path, root: str, split: str, workers: int | None = None, device: str = "auto") -> Evaluation:
    """Returns the counts of a checkpoint on a split.

    Args:
        folder: checkpoint folder.
        root: dataset folder or URI.
        split: name of the split.
        workers: how many tasks share the rows; none takes one a GPU, or one a node.
        device: "cpu", "cuda" or "auto".

    Raises:
        CheckpointError: the folder is no whole checkpoint.
        DataError: no such dataset or split, other classes than the model's, or a damaged shard.
        CapacityError: the cluster cannot hold the workers.
        ConfigError: fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; expected at least 1.")
    meta = checkpoint.load_meta(folder)
    config, classes = checkpoint.load_config(folder), checkpoint.load_classes(folder)
    root = places.absolute("data.root", root)
    manifest = read_manifest(root)
    source = Source(root, manifest.split(split))
    _check(root, split, source, classes, manifest.classes)
    weights = checkpoint.load_model(folder).state_dict()
    cluster.connect()
    nodes = cluster.nodes()
    placement = capacity.place(nodes, workers or capacity.widest(nodes, device), device, "--workers")
    counts = _count(_Job(config, classes, weights, source, placement))
    return Evaluation(counts, scores(counts, classes.names), split, source.split.rows, manifest.digest, meta.step)


def _check(root: str, split: str, source: Source, ours: Classes, theirs: Classes) -> None:
    if source.split.rows == 0:
        raise DataError(f"split '{split}' of {root} is empty; expected at least one row.")
    if ours.names != theirs.names:
        only = sorted(set(ours.names) ^ set(theirs.names))
        raise DataError(
            f"the model knows {ours.num_classes} classes and {root} has {theirs.num_classes}; they differ in "
            f"{', '.join(only) or 'their order'}; evaluate on a dataset with the model's classes."
        )


@dataclass(frozen=True)
class _Job:
    config: Config
    classes: Classes
    weights: dict[str, Tensor]
    source: Source
    placement: Placement


def _count(job: _Job) -> Confusion:
    placement = job.placement
    # The weights travel with the task: another node may not see the folder they came from.
    shared = ray.put(job)
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus, scheduling_strategy="SPREAD")(_count_share)
    try:
        parts = ray.get([task.remote(shared, rank) for rank in range(placement.workers)])
    except RayError as error:
        raise cluster.cause(error) or SegrayError(f"evaluation failed: {error}") from error
    total: Confusion = np.sum(parts, axis=0, dtype=np.int64)
    return total


def _count_share(job: _Job, rank: int) -> Any:
    placement = job.placement
    model = checkpoint.build_model(job.config, job.classes)
    model.load_state_dict(job.weights)
    rows = evaluation_rows(
        job.source,
        rows_of(rank, placement.workers, job.source.split.rows),
        job.config.data.short_side,
        job.config.eval.align,
        Means(placement.read_cpus, placement.threads),
    )
    device = torch.device(placement.device)
    counts = count(model.to(device), rows, job.classes.num_classes, job.classes.ignore_id, placement.threads)
    return counts.numpy()
