"""A run that is part of a sweep: what it has from the whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from segray.cluster.resources import WorkerResources
from segray.data.prefetch import SharedSplit


@dataclass(frozen=True)
class TrialContext:
    """What a run has from the sweep it is part of, which uploads its journal and registers models.

    Attributes:
        sweep: key of the sweep's own run, below which MLflow shows this one.
        number: of the trial.
        placement: what each of its workers gets beside those of other trials.
        tracking_uri: MLflow store, its password included: the run's own settings lack that.
        shared: rows that lie in the cluster's memory already, by split.
        pulse: that the trials of a slot have one after another; none makes one for the run.
    """

    sweep: str
    number: int
    placement: WorkerResources
    tracking_uri: str = field(repr=False)
    shared: Mapping[str, SharedSplit] = field(default_factory=dict)
    pulse: ray.actor.ActorHandle | None = None

    @property
    def journal_fields(self) -> dict[str, Any]:
        """Returns what a run's journal says of its sweep."""
        return {"parent": self.sweep, "number": self.number}
