"""Context that a sweep passes to each of its trial runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from segray.cluster.resources import WorkerResources
from segray.data.prefetch import SharedSplit


@dataclass(frozen=True)
class TrialContext:
    """Context of a trial run. The sweep uploads the journal of the run and registers its models.

    Attributes:
        sweep_key: key of the sweep's own run, which is the parent of this run in MLflow.
        number: number of the trial.
        placement: resources of each worker, next to those of other trials.
        tracking_uri: MLflow store including the password, which the settings of the run do not contain.
        shared_splits: rows already stored in the cluster's memory, by split.
        initial_weights: checkpoint folders of the registered versions that the sweep has downloaded, by reference.
        heartbeat_monitor: `HeartbeatMonitor` actor, reused by consecutive trials of a slot; `None` creates one for
            the run.
    """

    sweep_key: str
    number: int
    placement: WorkerResources
    tracking_uri: str = field(repr=False)
    shared_splits: Mapping[str, SharedSplit] = field(default_factory=dict)
    initial_weights: Mapping[str, Path] = field(default_factory=dict)
    heartbeat_monitor: ray.actor.ActorHandle | None = None

    @property
    def journal_fields(self) -> dict[str, Any]:
        """Journal fields that link the run to its sweep."""
        return {"parent": self.sweep_key, "number": self.number}
