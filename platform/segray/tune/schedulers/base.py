"""Interface of trial schedulers."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from segray.tune.trial import State, Trial


class SchedulerDecision(Enum):
    """Decision of a scheduler on a trial after a validation."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


class Scheduler(Protocol):
    """Interface of a trial scheduler, which decides which trials continue."""

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_complete: bool) -> SchedulerDecision:
        """Returns the decision on a trial after a validation, and stores the reason in `trial.reason`.

        Args:
            trial: trial that validated.
            trials: all trials of the sweep.
            is_complete: True if no further trials will be added.
        """

    def next_to_resume(self, trials: Sequence[Trial], is_complete: bool) -> Trial | None:
        """Returns a paused trial that may resume, or `None`. Has no side effects and may be called at any time.

        Args:
            trials: all trials of the sweep.
            is_complete: True if no further trials will be added.
        """


class NoEarlyStopping:
    """Scheduler that lets every trial run to its last step."""

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_complete: bool) -> SchedulerDecision:
        return SchedulerDecision.CONTINUE

    def next_to_resume(self, trials: Sequence[Trial], is_complete: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
