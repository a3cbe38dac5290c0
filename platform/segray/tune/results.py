"""Analysis of a sweep: best trial, Pareto front, cost and reasons for failures."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from segray.core.errors import format_list
from segray.tune.trial import State, Trial, objective_sign

MAX_LISTED = 5
"""Maximum number of trials that a line of failure reasons lists."""


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the highest value among the finished trials, or among all that did not fail if none is.

    Returns `None` if no trial has a value.
    """
    candidates = [trial for trial in trials if trial.best is not None and trial.state is not State.FAILED]
    finished = [trial for trial in candidates if trial.state is State.FINISHED]
    return max(finished or candidates, key=lambda trial: (trial.best or 0.0, -trial.number), default=None)


def objective_values(trial: Trial, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """Returns the objective values of a trial, without a change of sign, or `None` if one is unknown."""
    if trial.best is None:
        return None
    first, *others = metrics
    if not all(name in trial.other_metrics for name in others):
        return None
    return objective_sign(first) * trial.best, *(trial.other_metrics[name] for name in others)


def pareto_front(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """Returns the trials of the Pareto front, in the order of `trials`, without failed ones.

    A trial is on the front if no other trial is better in one metric and at least as good in all others.
    """
    signs = [objective_sign(name) for name in metrics]
    points: dict[int, tuple[float, ...]] = {}  # higher is better in each coordinate
    for trial in trials:
        values = objective_values(trial, metrics)
        if values is not None and trial.state is not State.FAILED:
            points[trial.number] = tuple(sign * value for sign, value in zip(signs, values, strict=True))

    def is_dominated(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )

    return [trial for trial in trials if trial.number in points and not is_dominated(points[trial.number])]


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


def sweep_cost(trials: Sequence[Trial], last_step: int, workers: int, end_reason: str | None = None) -> SweepCost:
    """Computes the cost of trials.

    Args:
        trials: all trials of the sweep.
        last_step: last step of a trial.
        workers: number of workers of a trial.
        end_reason: reason for an early end of the sweep; trials stopped for it do not count as saved steps.
    """
    stopped = [trial for trial in trials if trial.state is State.STOPPED and trial.reason != end_reason]
    return SweepCost(
        steps=sum(trial.step for trial in trials),
        whole=len(trials) * last_step,
        spared=sum(last_step - trial.step for trial in stopped),
        worker_hours=sum(trial.seconds + trial.segment_s for trial in trials) * workers / 3600,
    )


def failure_reasons(trials: Sequence[Trial]) -> str:
    """Returns the reasons for failed trials, one line per reason, most frequent first."""
    numbers_by_reason: dict[str, list[int]] = defaultdict(list)
    for trial in trials:
        if trial.state is State.FAILED:
            first_line = trial.reason.strip().partition("\n")[0]
            numbers_by_reason[first_line or "unknown"].append(trial.number)
    lines = []
    for reason, numbers in sorted(numbers_by_reason.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(map(str, numbers[:MAX_LISTED])) + (" ..." if len(numbers) > MAX_LISTED else "")
        lines.append(f"{len(numbers)} x (trial {listed}): {reason}")
    return format_list(lines)
