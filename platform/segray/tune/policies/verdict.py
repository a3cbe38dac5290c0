"""What a policy is."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from segray.tune.trials import Trial


class Verdict(Enum):
    """What becomes of a trial after a validation."""

    GO_ON = "goes on"
    PAUSE = "pauses"
    STOP = "stops"


class Policy(Protocol):
    """Who goes on."""

    def judge(self, trial: Trial, trials: Sequence[Trial], is_alone: bool) -> Verdict:
        """Returns what becomes of a trial that has just validated.

        Args:
            trial: that has.
            trials: all there are.
            is_alone: whether nobody waits for its place.
        """

    def resumed(self, trials: Sequence[Trial], is_last_call: bool) -> Trial | None:
        """Returns a paused trial that may go on, if there is one.

        Args:
            trials: all there are.
            is_last_call: no trial runs, and none is to come.
        """
