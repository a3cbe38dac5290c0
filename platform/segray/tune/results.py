"""Analysis of a sweep: best trial, Pareto front, cost and reasons for failures."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from segray.core.errors import format_list
from segray.tune.trial import State, Trial, objective_sign

MAX_NAMED = 5


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the highest value among the finished trials, or among all that did not fail if none is.

    Returns `None` if no trial has a value.
    """
    known = [trial for trial in trials if trial.best is not None and trial.state is not State.FAILED]
    finished = [trial for trial in known if trial.state is State.FINISHED]
    return max(finished or known, key=lambda one: (one.best or 0.0, -one.number), default=None)


def objective_values(trial: Trial, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """Returns the objective values of a trial, without a change of sign, or `None` if one is unknown."""
    if trial.best is None:
        return None
    first, *others = metrics
    found = [objective_sign(first) * trial.best, *(trial.other_metrics[name] for name in others if name in trial.other_metrics)]
    return tuple(found) if len(found) == len(metrics) else None


def pareto_front(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """Returns the trials of the Pareto front, in the order of `trials`, without failed ones.

    A trial is on the front if no other trial is better in one metric and at least as good in all others.
    """
    whole = [trial for trial in trials if trial.state is not State.FAILED]
    known = {trial.number: found for trial in whole if (found := objective_values(trial, metrics)) is not None}
    signs = [objective_sign(name) for name in metrics]

    def is_beaten(number: int) -> bool:
        ours = [sign * value for sign, value in zip(signs, known[number], strict=True)]
        for other, found in known.items():
            theirs = [sign * value for sign, value in zip(signs, found, strict=True)]
            if other != number and theirs != ours and all(a >= b for a, b in zip(theirs, ours, strict=True)):
                return True
        return False

    return [trial for trial in trials if trial.number in known and not is_beaten(trial.number)]


@dataclass(frozen=True)
class SweepCost:
    """Cost of a sweep.

    Attributes:
        steps: number of completed training steps.
        whole: number of steps of all trials without early stopping.
        spared: number of steps saved because the scheduler stopped trials.
        worker_hours: hours of all workers together.
    """

    steps: int
    whole: int
    spared: int
    worker_hours: float

    @property
    def saved(self) -> float:
        """Worker-hours saved by early stopping, at the same time per step."""
        return self.worker_hours * self.spared / self.steps if self.steps else 0.0


def sweep_cost(trials: Sequence[Trial], last: int, workers: int, ended: str | None = None) -> SweepCost:
    """Computes the cost of trials.

    Args:
        trials: all trials of the sweep.
        last: last step of a trial.
        workers: number of workers of a trial.
        ended: reason for an early end of the sweep; trials stopped for it do not count as saved steps.
    """
    stopped = [trial for trial in trials if trial.state is State.STOPPED and trial.reason != ended]
    return SweepCost(
        steps=sum(trial.step for trial in trials),
        whole=len(trials) * last,
        spared=sum(last - trial.step for trial in stopped),
        worker_hours=sum(trial.seconds + trial.segment_s for trial in trials) * workers / 3600,
    )


def failure_reasons(trials: Sequence[Trial]) -> str:
    """Returns the reasons for failed trials, one line per reason, most frequent first."""
    found: dict[str, list[int]] = defaultdict(list)
    for trial in trials:
        if trial.state is State.FAILED:
            found[trial.reason.strip().splitlines()[0] if trial.reason.strip() else "unknown"].append(trial.number)
    lines = []
    for why, numbers in sorted(found.items(), key=lambda one: -len(one[1])):
        named = ", ".join(map(str, numbers[:MAX_NAMED])) + (" ..." if len(numbers) > MAX_NAMED else "")
        lines.append(f"{len(numbers)} x (trial {named}): {why}")
    return format_list(lines)
