"""What a sweep does next, decided from its trials alone: no cluster, no clock, no files.

Whoever runs the trials (`engine`) tells what happens and asks what to start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from segray.tune.schedulers.base import Scheduler, SchedulerDecision
from segray.tune.search import Search
from segray.tune.space import Values
from segray.tune.trial import State, Trial, objective_sign


@dataclass
class SweepController:
    """A sweep in progress.

    Attributes:
        policy: who goes on.
        search: where configurations come from.
        most: trials there will be.
        metrics: what is looked for; policies decide by the first.
        trials: all so far, by number.
        on_suggested: called with each new trial, before it is started.
    """

    policy: Scheduler
    search: Search
    most: int
    metrics: tuple[str, ...]
    trials: list[Trial] = field(default_factory=list)
    on_suggested: Callable[[Trial], None] = lambda _trial: None
    _is_exhausted: bool = False

    def __post_init__(self) -> None:
        for trial in self.trials:  # who had validated when everything ended was perhaps not judged yet
            if trial.state is State.WAITING and trial.curve:
                self._judge(trial)

    def next(self) -> Trial | None:
        """Returns the trial to start or to go on with now, none if there is none before another reports or ends."""
        trial = self._waiting() or self._resumed() or self._suggested() or self._resumed()
        if trial is not None:
            trial.state, trial.allowed, trial.why = State.RUNNING, trial.step, ""
        return trial

    @property
    def is_over(self) -> bool:
        """Returns whether nothing is left to do; who is still paused is stopped then."""
        is_idle = self._waiting() is None and self._resumed() is None
        return is_idle and not self._has_new() and not self._running()

    def reported(self, trial: Trial, step: int, found: dict[str, float]) -> SchedulerDecision:
        """Notes a validation and returns what becomes of the trial.

        Args:
            trial: that validated.
            step: of the validation.
            found: its metrics; it is worst where the first is missing.
        """
        first, *others = self.metrics
        if trial.copies is not None:
            trial.rewinds(step - 1)  # it went on from where its donor was, which may be behind it
            trial.copies = None
        trial.reports(step, objective_sign(first) * found[first] if first in found else WORST)
        trial.others |= {name: found[name] for name in others if name in found}
        return self._judge(trial)

    def _judge(self, trial: Trial) -> SchedulerDecision:
        verdict = self.policy.judge(trial, self.trials, not self._has_new())
        if verdict is SchedulerDecision.GO_ON:
            trial.allowed = trial.step
        if verdict is SchedulerDecision.STOP:
            trial.state = State.STOPPED
        if verdict is SchedulerDecision.PAUSE:
            trial.state = State.PAUSED
        return verdict

    def ended(self, trial: Trial, state: State, why: str = "") -> None:
        """Notes that a trial came to its end by itself."""
        trial.state, trial.why = state, why

    def close(self, why: str) -> None:
        """Stops all that is not over: the sweep ends."""
        for trial in self.trials:
            if not trial.is_over:
                trial.state = State.STOPPED
                trial.why = trial.why or why

    def _resumed(self) -> Trial | None:
        return self.policy.resumed(self.trials, not self._has_new())

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
        return not self._is_exhausted and len(self.trials) < self.most

    def _waiting(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.state is State.WAITING), None)

    def _running(self) -> Sequence[Trial]:
        return [trial for trial in self.trials if trial.state is State.RUNNING]


WORST = -1e9
"""Of a trial that did not report what is looked for."""
