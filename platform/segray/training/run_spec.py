"""Specification of a run, passed to each of its workers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from segray.cluster.resources import WorkerResources
from segray.config import Config
from segray.core.errors import DataError
from segray.data.loader import LoaderResources, shuffle_window_steps
from segray.data.manifest import Manifest
from segray.data.prefetch import SharedSplit
from segray.data.reader import SplitReader
from segray.data.sampler import EpochPlan


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run; equal on every rank.

    Attributes:
        config: settings of the run.
        manifest: manifest of the dataset.
        placement: resources of each rank.
        folder: run folder; contains the checkpoints.
        draws_per_row: number of times an epoch samples each row of the training split; `None` samples each row once.
        initial_weights: reference to the initial state dict; `None` keeps the random initialisation.
        heartbeat_monitor: actor that receives the heartbeats of all ranks; `None` disables monitoring.
        shared_splits: rows already stored in the cluster's memory, by split.
    """

    config: Config
    manifest: Manifest
    placement: WorkerResources
    folder: Path
    draws_per_row: NDArray[np.float64] | None = None
    initial_weights: ray.ObjectRef | None = None
    heartbeat_monitor: ray.actor.ActorHandle | None = None
    shared_splits: Mapping[str, SharedSplit] = field(default_factory=dict)


class BadRowPolicy:
    """Policy for rows that cannot be decoded: the first one ends the run, or they are skipped and counted.

    Attributes:
        count: number of skipped rows since the worker started; a row counts each time it is read.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self.count = 0

    def __call__(self, error: DataError) -> None:
        """Raises the error or counts it, depending on the setting."""
        if self._policy == "fail":
            raise error
        self.count += 1
        logging.getLogger(__name__).warning("skipped: %s", error)


def loader_resources(config: Config, placement: WorkerResources, shared: SharedSplit | None = None) -> LoaderResources:
    """Returns the resources that a worker may use to load its batches."""
    tasks = 2 * max(1, int(placement.free_cpus)) if config.data.augment_on == "cluster" else 0
    return LoaderResources(placement.read_cpus, placement.threads, tasks, placement.device == "cuda", shared)


def build_epoch_plan(source: SplitReader, config: Config, draws_per_row: NDArray[np.float64] | None) -> EpochPlan:
    """Returns the plan that defines the row order of a run."""
    batch = config.train.batch
    return EpochPlan(
        source.rows_per_group(), batch, config.train.seed, shuffle_window_steps(source, batch), draws_per_row
    )
