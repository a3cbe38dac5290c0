"""Median stopping: a trial stops if its forecast is below the median of the others.

Follows Golovin et al., Google Vizier (2017), with one difference: it compares the forecasts of the final values instead
of the values reached so far, because these put slow starters at a disadvantage.
"""

from collections.abc import Sequence
from statistics import median

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial

MIN_OTHERS = 3


class MedianStopping:
    """Scheduler for median stopping.

    Args:
        grace: number of steps before a trial may be stopped.
        last: last step of a trial.
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
