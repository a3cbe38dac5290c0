"""The median rule: who is expected to end below half of the others is stopped.

After Golovin et al., Google Vizier (2017), but for what is compared: not what curves have reached, which is unjust to
those that start slowly, but what they are expected to end at.
"""

from collections.abc import Sequence
from statistics import median

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial

MIN_OTHERS = 3


class MedianStopping:
    """The median rule.

    Args:
        grace: steps before a trial may be stopped.
        last: step of the end.
    """

    def __init__(self, grace: int, last: int) -> None:
        self._grace, self._last = grace, last

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        step = trial.step
        if not self._grace <= step < self._last:
            return SchedulerDecision.CONTINUE
        others = [one.forecast(step, self._last) for one in trials if one is not trial and step in one.curve]
        if len(others) < MIN_OTHERS or trial.forecast(step, self._last) >= median(others):
            return SchedulerDecision.CONTINUE
        trial.reason = f"below the median of {len(others)} others at step {step}"
        return SchedulerDecision.STOP

    def next_to_resume(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
