"""The trials of a sweep as they are known at a moment: everything that policies and searches decide from."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from segray.tune.curve_forecast import extrapolate_curve

COST = "cost/"
"""Beginning of the metrics that are known of a model before it is trained."""

MINIMISED = (COST, "train/loss")
"""Metrics that are the better the lower, by their beginning."""


def objective_sign(metric: str) -> int:
    """Returns 1 for a metric that is the better the higher, -1 for the others."""
    return -1 if metric.startswith(MINIMISED) else 1


class State(StrEnum):
    """What becomes of a trial."""

    PENDING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


TERMINAL_STATES = frozenset({State.STOPPED, State.FINISHED, State.FAILED})


@dataclass
class Trial:
    """One trial.

    Attributes:
        number: 0-based, in order of their suggestion.
        values: its settings, by dotted key.
        state: what it does now.
        curve: the first metric at each validation, by step; the higher, the better.
        others: the other metrics as last reported, as they are.
        approved_step: step of the validation that it was last allowed to go on from.
        copy_from: trial whose checkpoint its part begins with, until it has validated behind that.
        seconds: it has run, in parts that have ended.
        segment_s: seconds of the part that runs.
        accumulation_steps: its steps are computed in, once that is known.
        actor_failures: of its actor, so far.
        reason: it is in this state.
    """

    number: int
    values: dict[str, Any]
    state: State = State.PENDING
    curve: dict[int, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    approved_step: int = 0
    copy_from: int | None = None
    seconds: float = 0.0
    segment_s: float = 0.0
    accumulation_steps: int | None = None
    actor_failures: int = 0
    reason: str = ""
    _forecasts: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def step(self) -> int:
        """Returns the step of its last validation, 0 before the first."""
        return max(self.curve, default=0)

    @property
    def value(self) -> float | None:
        """Returns its last validation's value."""
        return self.curve[self.step] if self.curve else None

    @property
    def best(self) -> float | None:
        """Returns its highest value."""
        return max(self.curve.values(), default=None)

    @property
    def is_over(self) -> bool:
        """Returns whether nothing comes of it any more."""
        return self.state in TERMINAL_STATES

    def first_step_at(self, step: int) -> int | None:
        """Returns the step of the first validation at or behind a step, if it came so far."""
        return min((found for found in self.curve if found >= step), default=None)

    def forecast(self, step: int, last: int) -> float:
        """Returns what it was expected to end at when it came to a step.

        Args:
            step: of a validation.
            last: step of the end.
        """
        if step not in self._forecasts:
            steps = sorted(found for found in self.curve if found <= step)
            self._forecasts[step] = extrapolate_curve(steps, [self.curve[found] for found in steps], last)
        return self._forecasts[step]

    def end_segment(self) -> None:
        """Adds the seconds of the part that ran to those before it."""
        self.seconds, self.segment_s = self.seconds + self.segment_s, 0.0

    def add_result(self, step: int, value: float) -> None:
        """Notes a validation."""
        self.curve[step] = value
        self._forecasts.pop(step, None)

    def roll_back(self, step: int) -> None:
        """Forgets what came after a step: it goes on from another's checkpoint."""
        self.curve = {found: value for found, value in self.curve.items() if found <= step}
        self._forecasts = {}
