"""What a policy is."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from segray.tune.trial import State, Trial


class SchedulerDecision(Enum):
    """What becomes of a trial after a validation."""

    GO_ON = "goes on"
    PAUSE = "pauses"
    STOP = "stops"


class Scheduler(Protocol):
    """Who goes on."""

    def judge(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        """Returns what becomes of a trial that has just validated, and notes at the trial why.

        Args:
            trial: that has.
            trials: all there are.
            is_whole: whether no other is to come.
        """

    def resumed(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        """Returns a paused trial that may go on, if there is one. Changes nothing: it may be asked at any time.

        Args:
            trials: all there are.
            is_whole: whether no other is to come.
        """


class NoEarlyStopping:
    """Stops nobody."""

    def judge(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        return SchedulerDecision.GO_ON

    def resumed(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
