"""Asynchronous successive halving (ASHA): at each rung a fraction of the trials continues, the others are paused.

Follows Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), including promotions: a trial that is
not among the best at a rung is paused, and resumes from its checkpoint once it is among them. Trials are compared by
the forecasts of their final values. At most one of `reduction` trials continues past a rung, so the cost of a sweep is
known in advance.
"""

from collections.abc import Sequence

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial


class AsyncSuccessiveHalving:
    """Scheduler for asynchronous successive halving.

    Args:
        rungs: steps of the rungs, ascending.
        reduction: reduction factor; one of `reduction` trials continues past a rung.
        last: last step of a trial.
    """

    def __init__(self, rungs: Sequence[int], reduction: float, last: int) -> None:
        self._rungs, self._reduction, self._last = tuple(rungs), reduction, last

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        rung = self._rung_at(trial)
        if rung is None or trial in self._promotable(rung, trials) or trial is self._last_hope(trials, is_whole, trial):
            return SchedulerDecision.CONTINUE
        trial.reason = f"not among the best at step {trial.step}"
        return SchedulerDecision.PAUSE

    def next_to_resume(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        for rung in reversed(range(len(self._rungs))):
            for trial in self._promotable(rung, trials):
                if trial.state is State.PAUSED:
                    return trial
        return self._last_hope(trials, is_whole)

    def _last_hope(self, trials: Sequence[Trial], is_whole: bool, judged: Trial | None = None) -> Trial | None:
        """Returns the trial closest to the last step, if no other trial is finished, running or pending.

        This guarantees that at least one trial finishes.
        """
        others = {trial.state for trial in trials if trial is not judged}
        if not is_whole or others & {State.PENDING, State.RUNNING, State.FINISHED}:
            return None
        left = [trial for trial in trials if trial is judged or (trial.state is State.PAUSED and trial.curve)]
        return max(left, key=lambda one: (one.step, self._expected(one, one.step)), default=None)

    def _rung_at(self, trial: Trial) -> int | None:
        """Returns the highest rung that a trial reached with its last validation, or `None` if there is no new one."""
        reached = [rung for rung, step in enumerate(self._rungs) if trial.first_step_at(step) == trial.step]
        return max(reached, default=None)

    def _promotable(self, rung: int, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials that may continue past a rung now, best first."""
        members = {
            trial.number: step for trial in trials if (step := trial.first_step_at(self._rungs[rung])) is not None
        }
        room = int(len(members) / self._reduction)
        there = [trial for trial in trials if trial.number in members and trial.state is not State.FAILED]
        there.sort(key=lambda one: (-self._expected(one, members[one.number]), one.number))
        beyond = [one for one in there if self._is_beyond(one, rung, members[one.number])]
        best = [one for one in there[:room] if one not in beyond and not one.is_over]
        return best[: max(0, room - len(beyond))]

    def _is_beyond(self, trial: Trial, rung: int, step: int) -> bool:
        """Returns True if a trial has continued past a rung that it reached at a step."""
        return trial.approved_step >= step or trial.step > step or trial.state is State.FINISHED

    def _expected(self, trial: Trial, step: int) -> float:
        return trial.forecast(step, self._last)
