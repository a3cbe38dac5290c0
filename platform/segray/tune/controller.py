"""Control of a sweep, based only on its trials: no cluster, no clock, no files.

The module that runs the trials (`ray_tune`) reports events and requests the next trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from segray.tune.schedulers.base import Scheduler, SchedulerDecision
from segray.tune.search import Search
from segray.tune.space import Values
from segray.tune.trial import State, Trial, objective_sign


@dataclass
class SweepController:
    """State of a sweep and its decisions.

    Attributes:
        policy: trial scheduler.
        search: searcher that suggests configurations.
        max_trials: maximum number of trials.
        metrics: objectives; the scheduler uses the first.
        trials: all trials so far, in order of their numbers.
        on_suggested: callable that receives each new trial before it starts.
    """

    policy: Scheduler
    search: Search
    max_trials: int
    metrics: tuple[str, ...]
    trials: list[Trial] = field(default_factory=list)
    on_suggested: Callable[[Trial], None] = lambda _trial: None
    _is_exhausted: bool = False

    def __post_init__(self) -> None:
        for trial in self.trials:  # the last validation may not have been evaluated
            if trial.state is State.PENDING and trial.curve:
                self._judge(trial)

    def next_trial(self) -> Trial | None:
        """Returns the next trial to start or resume, or `None` if there is none until another trial reports or ends."""
        trial = self._waiting() or self._resumed() or self._suggested() or self._resumed()
        if trial is not None:
            trial.state, trial.approved_step, trial.reason = State.RUNNING, trial.step, ""
        return trial

    @property
    def is_over(self) -> bool:
        """True if there is no trial to run. Trials that are still paused can then be stopped."""
        is_idle = self._waiting() is None and self._resumed() is None
        return is_idle and not self._has_new() and not self._running()

    def on_result(self, trial: Trial, step: int, found: dict[str, float]) -> SchedulerDecision:
        """Records a validation and returns the scheduler's decision.

        Args:
            trial: trial that validated.
            step: step of the validation.
            found: metrics of the validation; the trial gets the worst value if the first objective is missing.
        """
        first, *others = self.metrics
        if trial.copy_from is not None:
            trial.roll_back(step - 1)  # it resumed from the step of its donor, which may be earlier
            trial.copy_from = None
        trial.add_result(step, objective_sign(first) * found[first] if first in found else WORST)
        trial.others |= {name: found[name] for name in others if name in found}
        return self._judge(trial)

    def _judge(self, trial: Trial) -> SchedulerDecision:
        verdict = self.policy.on_result(trial, self.trials, not self._has_new())
        if verdict is SchedulerDecision.CONTINUE:
            trial.approved_step = trial.step
        if verdict is SchedulerDecision.STOP:
            trial.state = State.STOPPED
        if verdict is SchedulerDecision.PAUSE:
            trial.state = State.PAUSED
        return verdict

    def on_end(self, trial: Trial, state: State, why: str = "") -> None:
        """Records that a trial ended by itself, with its new state and the reason."""
        trial.state, trial.reason = state, why

    def close(self, why: str) -> None:
        """Marks all trials that are not over as stopped, at the end of the sweep."""
        for trial in self.trials:
            if not trial.is_over:
                trial.state = State.STOPPED
                trial.reason = trial.reason or why

    def _resumed(self) -> Trial | None:
        return self.policy.next_to_resume(self.trials, not self._has_new())

    def _suggested(self) -> Trial | None:
        if not self._has_new():
            return None
        number = len(self.trials)
        values = self.search.suggest(number, self.trials)
        if values is None:
            self._is_exhausted = True
            return None
        return self._added(number, values)

    def _added(self, number: int, values: Values) -> Trial:
        trial = Trial(number, values)
        self.on_suggested(trial)
        self.trials.append(trial)
        return trial

    def _has_new(self) -> bool:
        return not self._is_exhausted and len(self.trials) < self.max_trials

    def _waiting(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.state is State.PENDING), None)

    def _running(self) -> Sequence[Trial]:
        return [trial for trial in self.trials if trial.state is State.RUNNING]


WORST = -1e9
"""Value of a trial that did not report the first objective."""
