"""The median rule: who is expected to end below half of the others is stopped.

After Golovin et al., Google Vizier (2017), but for what is compared: not what curves have reached, which is unjust to
those that start slowly, but what they are expected to end at.
"""

from collections.abc import Sequence
from statistics import median

from segray.tune.policies.verdict import Verdict
from segray.tune.trials import State, Trial

LEAST_OTHERS = 3


class Median:
    """The median rule.

    Args:
        grace: steps before a trial may be stopped.
        last: step of the end.
    """

    def __init__(self, grace: int, last: int) -> None:
        self._grace, self._last = grace, last

    def judge(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> Verdict:
        step = trial.step
        if not self._grace <= step < self._last:
            return Verdict.GO_ON
        others = [one.forecast(step, self._last) for one in trials if one is not trial and step in one.curve]
        if len(others) < LEAST_OTHERS or trial.forecast(step, self._last) >= median(others):
            return Verdict.GO_ON
        trial.why = f"below the median of {len(others)} others at step {step}"
        return Verdict.STOP

    def resumed(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
