"""What came of a sweep: which trial is best, which are weighed against each other, what it cost."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from segray.errors import listing
from segray.tune.trials import State, Trial, sign_of


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the highest value among those that came to their end, else among all."""
    known = [trial for trial in trials if trial.best is not None and trial.state is not State.FAILED]
    finished = [trial for trial in known if trial.state is State.FINISHED]
    return max(finished or known, key=lambda one: (one.best or 0.0, -one.number), default=None)


def values_of(trial: Trial, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """Returns what a trial found, each metric as it is, none if one is unknown."""
    if trial.best is None:
        return None
    first, *others = metrics
    found = [sign_of(first) * trial.best, *(trial.others[name] for name in others if name in trial.others)]
    return tuple(found) if len(found) == len(metrics) else None


def front(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """Returns the trials that no other one is better than in one metric, and at least as good in all (Pareto)."""
    known = {trial.number: found for trial in trials if (found := values_of(trial, metrics)) is not None}
    signs = [sign_of(name) for name in metrics]

    def is_beaten(number: int) -> bool:
        ours = [sign * value for sign, value in zip(signs, known[number], strict=True)]
        for other, found in known.items():
            theirs = [sign * value for sign, value in zip(signs, found, strict=True)]
            if other != number and theirs != ours and all(a >= b for a, b in zip(theirs, ours, strict=True)):
                return True
        return False

    return [trial for trial in trials if trial.number in known and not is_beaten(trial.number)]


@dataclass(frozen=True)
class Cost:
    """What a sweep took.

    Attributes:
        steps: that were made.
        whole: steps that all its trials would have made to their end.
        worker_hours: of all workers together.
    """

    steps: int
    whole: int
    worker_hours: float

    @property
    def saved(self) -> float:
        """Returns the worker-hours that were saved by stopping early, at the same pace."""
        return self.worker_hours * (self.whole / self.steps - 1) if self.steps else 0.0


def cost_of(trials: Sequence[Trial], last: int, workers: int) -> Cost:
    """Returns what trials took, of so many steps and workers each."""
    steps = sum(trial.step for trial in trials)
    return Cost(steps, len(trials) * last, sum(trial.seconds + trial.part_s for trial in trials) * workers / 3600)


def reasons(trials: Sequence[Trial]) -> str:
    """Returns why trials failed, a line for each reason, the most frequent first."""
    failed = [trial for trial in trials if trial.state is State.FAILED]
    counts = Counter(trial.why.strip().splitlines()[0] if trial.why.strip() else "unknown" for trial in failed)
    lines = []
    for why, count in counts.most_common():
        numbers = [trial.number for trial in failed if trial.why.strip().startswith(why)]
        lines.append(f"{count} x (trial {', '.join(map(str, numbers[:5]))}{' ...' if count > 5 else ''}): {why}")
    return listing(lines)
