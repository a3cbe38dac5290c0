"""Asynchronous successive halving: at each rung one of so many goes on, the others wait there.

After Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), with their promotions: a trial that is
not among the best when it comes to a rung is paused, not lost, and goes on from its checkpoint once it is among them.
Trials are compared by what their curves are expected to end at. No more than one of `reduction` goes beyond a rung, so
what a sweep costs is known beforehand.
"""

from collections.abc import Sequence

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial


class AsyncSuccessiveHalving:
    """Successive halving.

    Args:
        rungs: steps of validations, ascending.
        reduction: one of so many goes on.
        last: step of the end.
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
        """Returns the trial that is nearest to the end, if none has come or may yet come there: somebody has to."""
        others = {trial.state for trial in trials if trial is not judged}
        if not is_whole or others & {State.PENDING, State.RUNNING, State.FINISHED}:
            return None
        left = [trial for trial in trials if trial is judged or (trial.state is State.PAUSED and trial.curve)]
        return max(left, key=lambda one: (one.step, self._expected(one, one.step)), default=None)

    def _rung_at(self, trial: Trial) -> int | None:
        """Returns the highest rung that a trial's last validation was the first at, if it was at one."""
        reached = [rung for rung, step in enumerate(self._rungs) if trial.first_step_at(step) == trial.step]
        return max(reached, default=None)

    def _promotable(self, rung: int, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials that may go beyond a rung now, best first."""
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
        """Returns whether a trial has gone on from a rung, where it came at a step."""
        return trial.approved_step >= step or trial.step > step or trial.state is State.FINISHED

    def _expected(self, trial: Trial, step: int) -> float:
        return trial.forecast(step, self._last)
