"""What a run is, told to every one of its workers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from segray.capacity import Placement
from segray.config import Config
from segray.data.fetch import Shared
from segray.data.pieces import Source
from segray.data.plan import Plan
from segray.data.schema import Manifest
from segray.data.stream import Means, window_steps
from segray.errors import DataError


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know; the same for every rank.

    Attributes:
        config: the run's.
        manifest: of its dataset.
        placement: what each rank gets.
        folder: of the run; holds its checkpoints.
        times: how often an epoch draws each row of the training split; none draws each once.
        init: the state dict to start from; none keeps what was drawn.
        pulse: the actor that every rank tells where it is; none has nobody watch.
        shared: rows that lie in the cluster's memory already, by split.
    """

    config: Config
    manifest: Manifest
    placement: Placement
    folder: Path
    times: NDArray[np.float64] | None = None
    init: ray.ObjectRef | None = None
    pulse: ray.actor.ActorHandle | None = None
    shared: Mapping[str, Shared] = field(default_factory=dict)


class BadRows:
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


def means(config: Config, placement: Placement, shared: Shared | None = None) -> Means:
    """Returns what a worker may use to make its batches."""
    tasks = 2 * max(1, int(placement.spare_cpus)) if config.data.decode == "cluster" else 0
    return Means(placement.read_cpus, placement.threads, tasks, placement.device == "cuda", shared)


def training_plan(source: Source, config: Config, times: NDArray[np.float64] | None) -> Plan:
    """Returns the order of a run's rows."""
    batch = config.train.batch
    return Plan(source.group_rows(), batch, config.train.seed, window_steps(source, batch), times)
