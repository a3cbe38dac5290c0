"""Median stopping: a trial stops if its forecast is below the median of the others.

Follows Golovin et al., Google Vizier (2017), with one difference: it compares the forecasts of the final values instead
of the values reached so far, because these put slow starters at a disadvantage.
"""

from collections.abc import Sequence
from statistics import median

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial

MIN_OTHERS = 3
"""Minimum number of other trials for a comparison."""


class MedianStopping:
    """Scheduler for median stopping.

    Args:
        grace_steps: number of steps before a trial may be stopped.
        last_step: last step of a trial.
    """

    def __init__(self, grace_steps: int, last_step: int) -> None:
        self._grace_steps, self._last_step = grace_steps, last_step

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_complete: bool) -> SchedulerDecision:
        step = trial.step
        if not self._grace_steps <= step < self._last_step:
            return SchedulerDecision.CONTINUE
        others = [
            other.forecast(step, self._last_step) for other in trials if other is not trial and step in other.curve
        ]
        if len(others) < MIN_OTHERS or trial.forecast(step, self._last_step) >= median(others):
            return SchedulerDecision.CONTINUE
        trial.reason = f"below the median of {len(others)} other trials at step {step}"
        return SchedulerDecision.STOP

    def next_to_resume(self, trials: Sequence[Trial], is_complete: bool) -> Trial | None:
        return next((trial for trial in trials if trial.state is State.PAUSED), None)
