"""Controller of a sweep, which depends only on its trials: no cluster, no clock, no files.

The module that runs the trials (`ray_tune`) reports events and requests the next trial.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from segray.tune.schedulers.base import Scheduler, SchedulerDecision
from segray.tune.search import Search
from segray.tune.trial import State, Trial, objective_sign

WORST = -1e9
"""Value of a trial that did not report the first objective."""


@dataclass
class SweepController:
    """State of a sweep and its decisions.

    Attributes:
        scheduler: trial scheduler.
        search: searcher that suggests configurations.
        max_trials: maximum number of trials.
        metrics: objectives; the scheduler uses the first.
        trials: all trials so far, in order of their numbers.
        on_suggested: callable that receives each new trial before it starts.
    """

    scheduler: Scheduler
    search: Search
    max_trials: int
    metrics: tuple[str, ...]
    trials: list[Trial] = field(default_factory=list)
    on_suggested: Callable[[Trial], None] = lambda _trial: None
    _is_exhausted: bool = False

    def __post_init__(self) -> None:
        for trial in self.trials:  # the last validation may not have been evaluated
            if trial.state is State.PENDING and trial.curve:
                self._decide(trial)

    def next_trial(self) -> Trial | None:
        """Returns the next trial to start or resume, or `None` if there is none until another trial reports or ends."""
        trial = self._pending_trial() or self._resumable_trial() or self._suggest_trial() or self._resumable_trial()
        if trial is not None:
            trial.state, trial.approved_step, trial.reason = State.RUNNING, trial.step, ""
            if trial.copy_from is not None:
                trial.continue_from_copy(trial.step)
        return trial

    @property
    def is_over(self) -> bool:
        """True if there is no trial to run. Trials that are still paused can then be stopped."""
        is_running = any(trial.state is State.RUNNING for trial in self.trials)
        has_waiting = self._pending_trial() is not None or self._resumable_trial() is not None
        return not is_running and not has_waiting and not self._can_suggest()

    def on_result(self, trial: Trial, step: int, metrics: dict[str, float]) -> SchedulerDecision:
        """Records a validation and returns the scheduler's decision.

        Args:
            trial: trial that validated.
            step: step of the validation.
            metrics: metrics of the validation; the trial gets the worst value if the first objective is missing.
        """
        first, *others = self.metrics
        if trial.copy_from is not None:
            trial.continue_from_copy(step - 1)  # the donor's checkpoint may be older than the trial's last validation
            trial.copy_from = None
        trial.add_result(step, objective_sign(first) * metrics[first] if first in metrics else WORST)
        trial.other_metrics |= {name: metrics[name] for name in others if name in metrics}
        return self._decide(trial)

    def _decide(self, trial: Trial) -> SchedulerDecision:
        decision = self.scheduler.on_result(trial, self.trials, not self._can_suggest())
        match decision:
            case SchedulerDecision.CONTINUE:
                trial.approved_step = trial.step
            case SchedulerDecision.PAUSE:
                trial.state = State.PAUSED
            case SchedulerDecision.STOP:
                trial.state = State.STOPPED
        return decision

    def on_end(self, trial: Trial, state: State, reason: str = "") -> None:
        """Records that a trial ended by itself, with its new state and the reason."""
        trial.state, trial.reason = state, reason

    def close(self, reason: str) -> None:
        """Marks all trials that are not over as stopped, at the end of the sweep."""
        for trial in self.trials:
            if not trial.is_over:
                trial.state = State.STOPPED
                trial.reason = trial.reason or reason

    def _resumable_trial(self) -> Trial | None:
        return self.scheduler.next_to_resume(self.trials, not self._can_suggest())

    def _suggest_trial(self) -> Trial | None:
        if not self._can_suggest():
            return None
        number = len(self.trials)
        values = self.search.suggest(number, self.trials)
        if values is None:
            self._is_exhausted = True
            return None
        trial = Trial(number, values)
        self.on_suggested(trial)
        self.trials.append(trial)
        return trial

    def _can_suggest(self) -> bool:
        return not self._is_exhausted and len(self.trials) < self.max_trials

    def _pending_trial(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.state is State.PENDING), None)
