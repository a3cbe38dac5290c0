"""What a policy is."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from segray.tune.trial import State, Trial


class SchedulerDecision(Enum):
    """What becomes of a trial after a validation."""

    CONTINUE = "goes on"
    PAUSE = "pauses"
    STOP = "stops"


class Scheduler(Protocol):
    """Who goes on."""

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        """Returns what becomes of a trial that has just validated, and notes at the trial why.

        Args:
            trial: that has.
            trials: all there are.
            is_whole: whether no other is to come.
        """

    def next_to_resume(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        """Returns a paused trial that may go on, if there is one. Changes nothing: it may be asked at any time.

        Args:
            trials: all there are.
            is_whole: whether no other is to come.
        """


class NoEarlyStopping:
    """Stops nobody."""

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        return SchedulerDecision.CONTINUE

    def next_to_resume(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
