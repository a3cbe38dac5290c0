"""State of a sweep's trials, which schedulers and searchers use for their decisions."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from segray.training.score import score_sign
from segray.tune.curve_forecast import extrapolate_curve

COST = "cost/"
"""Prefix of the metrics of a model that are known before training."""


def objective_sign(metric: str) -> int:
    """Returns 1 for a metric for which higher is better, -1 for the others."""
    return -1 if metric.startswith(COST) else score_sign(metric)


class State(StrEnum):
    """State of a trial."""

    PENDING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


TERMINAL_STATES = frozenset({State.STOPPED, State.FINISHED, State.FAILED})


@dataclass
class Trial:
    """Trial of a sweep.

    Attributes:
        number: 0-based number, in order of suggestion.
        values: settings by dotted key.
        state: current state.
        curve: first objective at each validation, by step; higher is better.
        other_metrics: last reported values of the other objectives, without a change of sign, and costs.
        approved_step: step of the last validation after which the scheduler let the trial continue.
        copy_from: number of the trial whose checkpoint the segment starts from; `None` after the next validation.
        copied_step: step of the last copy of another trial's checkpoint, which replaced the earlier ones; 0 before it.
        seconds: run time of all completed segments, in seconds.
        segment_s: run time of the current segment, in seconds.
        accumulation_steps: number of gradient accumulation steps; `None` if it is unknown.
        actor_failures: number of failures of its actor.
        reason: reason for the current state.
    """

    number: int
    values: dict[str, Any]
    state: State = State.PENDING
    curve: dict[int, float] = field(default_factory=dict)
    other_metrics: dict[str, float] = field(default_factory=dict)
    approved_step: int = 0
    copy_from: int | None = None
    copied_step: int = 0
    seconds: float = 0.0
    segment_s: float = 0.0
    accumulation_steps: int | None = None
    actor_failures: int = 0
    reason: str = ""
    _forecasts: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def step(self) -> int:
        """Step of the last validation, 0 before the first."""
        return max(self.curve, default=0)

    @property
    def value(self) -> float | None:
        """Value of the last validation, or `None` before the first."""
        return self.curve[self.step] if self.curve else None

    @property
    def best(self) -> float | None:
        """Highest value since the last copy of another trial's checkpoint, or `None` if there is none.

        The checkpoints of the values before the copy no longer exist.
        """
        return max((value for step, value in self.curve.items() if step > self.copied_step), default=None)

    @property
    def is_over(self) -> bool:
        """True if the trial is in a terminal state."""
        return self.state in TERMINAL_STATES

    def first_step_at(self, step: int) -> int | None:
        """Returns the step of the first validation at or after a step, or `None` if the trial has not reached it."""
        return min((validated for validated in self.curve if validated >= step), default=None)

    def forecast(self, step: int, last_step: int) -> float:
        """Returns the forecast of the final value, based on the validations up to a step.

        Args:
            step: step of a validation.
            last_step: last step of the trial.
        """
        if step not in self._forecasts:
            steps = sorted(validated for validated in self.curve if validated <= step)
            values = [self.curve[validated] for validated in steps]
            self._forecasts[step] = extrapolate_curve(steps, values, last_step)
        return self._forecasts[step]

    def end_segment(self) -> None:
        """Adds the run time of the current segment to the total run time."""
        self.seconds, self.segment_s = self.seconds + self.segment_s, 0.0

    def add_result(self, step: int, value: float) -> None:
        """Records the value of a validation."""
        self.curve[step] = value
        self._forecasts.pop(step, None)

    def continue_from_copy(self, step: int) -> None:
        """Removes the values after a step, for a trial that continues from another trial's checkpoint of that step."""
        self.copied_step = step
        self.curve = {validated: value for validated, value in self.curve.items() if validated <= step}
        self._forecasts = {}
