"""Asynchronous successive halving (ASHA): at each rung a fraction of the trials continues, the others are paused.

Follows Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), including promotions: a trial that is
not among the best at a rung is paused, and resumes from its checkpoint once it is among them. Trials are compared by
the forecasts of their final values. At most one of `reduction_factor` trials continues past a rung, so the cost of a
sweep is known in advance.
"""

from collections.abc import Sequence

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial


class AsyncSuccessiveHalving:
    """Scheduler for asynchronous successive halving.

    Args:
        rungs: steps of the rungs, ascending.
        reduction_factor: one of `reduction_factor` trials continues past a rung.
        last_step: last step of a trial.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: float, last_step: int) -> None:
        self._rungs, self._reduction_factor, self._last_step = tuple(rungs), reduction_factor, last_step

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_complete: bool) -> SchedulerDecision:
        rung = self._rung_at(trial)
        if rung is None or trial in self._promotable(rung, trials):
            return SchedulerDecision.CONTINUE
        if trial is self._fallback_trial(trials, is_complete, trial):
            return SchedulerDecision.CONTINUE
        trial.reason = f"not among the best at step {trial.step}"
        return SchedulerDecision.PAUSE

    def next_to_resume(self, trials: Sequence[Trial], is_complete: bool) -> Trial | None:
        for rung in reversed(range(len(self._rungs))):
            for trial in self._promotable(rung, trials):
                if trial.state is State.PAUSED:
                    return trial
        return self._fallback_trial(trials, is_complete)

    def _fallback_trial(self, trials: Sequence[Trial], is_complete: bool, current: Trial | None = None) -> Trial | None:
        """Returns the trial closest to the last step, if no other trial is finished, running or pending.

        This guarantees that at least one trial finishes.

        Args:
            trials: all trials of the sweep.
            is_complete: True if no further trials will be added.
            current: running trial that waits for the decision; `None` if there is none.
        """
        others = {trial.state for trial in trials if trial is not current}
        if not is_complete or others & {State.PENDING, State.RUNNING, State.FINISHED}:
            return None
        candidates = [trial for trial in trials if trial is current or (trial.state is State.PAUSED and trial.curve)]
        return max(candidates, key=lambda trial: (trial.step, self._forecast(trial, trial.step)), default=None)

    def _rung_at(self, trial: Trial) -> int | None:
        """Returns the highest rung that a trial reached with its last validation, or `None` if there is no new one."""
        reached = [rung for rung, step in enumerate(self._rungs) if trial.first_step_at(step) == trial.step]
        return max(reached, default=None)

    def _promotable(self, rung: int, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials that may continue past a rung now, best first."""
        steps = {trial.number: step for trial in trials if (step := trial.first_step_at(self._rungs[rung])) is not None}
        max_promoted = int(len(steps) / self._reduction_factor)
        ranked = [trial for trial in trials if trial.number in steps and trial.state is not State.FAILED]
        ranked.sort(key=lambda trial: (-self._forecast(trial, steps[trial.number]), trial.number))
        promoted = [trial for trial in ranked if self._is_promoted(trial, steps[trial.number])]
        best = [trial for trial in ranked[:max_promoted] if trial not in promoted and not trial.is_over]
        return best[: max(0, max_promoted - len(promoted))]

    def _is_promoted(self, trial: Trial, step: int) -> bool:
        """Returns True if a trial has continued past the rung that it reached at a step."""
        return trial.approved_step >= step or trial.step > step or trial.state is State.FINISHED

    def _forecast(self, trial: Trial, step: int) -> float:
        return trial.forecast(step, self._last_step)
