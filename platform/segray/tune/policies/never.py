"""Everybody goes on to the end."""

from collections.abc import Sequence

from segray.tune.policies.verdict import Verdict
from segray.tune.trials import State, Trial


class Never:
    """Stops nobody."""

    def judge(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> Verdict:
        return Verdict.GO_ON

    def resumed(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
