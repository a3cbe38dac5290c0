"""What a run is, told to every one of its workers."""

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
    """Everything a worker needs to know; the same for every rank.

    Attributes:
        config: the run's.
        manifest: of its dataset.
        placement: what each rank gets.
        folder: of the run; holds its checkpoints.
        draws_per_row: how often an epoch draws each row of the training split; none draws each once.
        initial_weights: the state dict to start from; none keeps what was drawn.
        heartbeat: the actor that every rank tells where it is; none has nobody watch.
        shared_splits: rows that lie in the cluster's memory already, by split.
    """

    config: Config
    manifest: Manifest
    placement: WorkerResources
    folder: Path
    draws_per_row: NDArray[np.float64] | None = None
    initial_weights: ray.ObjectRef | None = None
    heartbeat: ray.actor.ActorHandle | None = None
    shared_splits: Mapping[str, SharedSplit] = field(default_factory=dict)


class BadRowPolicy:
    """What becomes of rows that cannot be decoded: the first ends the run, or they are counted.

    Attributes:
        count: rows left out since the worker started, each time they were met.
    """

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self.count = 0

    def __call__(self, error: DataError) -> None:
        """Raises the error, or counts it."""
        if self._setting == "fail":
            raise error
        self.count += 1
        logging.getLogger(__name__).warning("left out: %s", error)


def loader_resources(config: Config, placement: WorkerResources, shared: SharedSplit | None = None) -> LoaderResources:
    """Returns what a worker may use to make its batches."""
    tasks = 2 * max(1, int(placement.free_cpus)) if config.data.decode == "cluster" else 0
    return LoaderResources(placement.read_cpus, placement.threads, tasks, placement.device == "cuda", shared)


def build_epoch_plan(source: SplitReader, config: Config, times: NDArray[np.float64] | None) -> EpochPlan:
    """Returns the order of a run's rows."""
    batch = config.train.batch
    return EpochPlan(source.rows_per_group(), batch, config.train.seed, shuffle_window_steps(source, batch), times)
