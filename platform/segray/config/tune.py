"""The settings of a sweep: what is varied, what is looked for, and what it may cost."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.base import Count, Fraction, Positive, Settings
from segray.config.parsers import invalid_setting, parse_objectives, parse_search_space

Space = dict[str, dict[str, Any]]
"""Ranges by dotted key: {"optim.lr": {"loguniform": [1e-5, 1e-3]}}."""
Objectives = tuple[str, ...]


def _none_is_a_name(value: Any) -> Any:
    """Returns what was meant: on a command line `none` is otherwise no value."""
    return "none" if value is None else value


Scheduler = Annotated[Literal["none", "asha", "median", "pbt"], BeforeValidator(_none_is_a_name)]


class BudgetConfig(Settings):
    """What a sweep may cost; it ends when any of it is spent, and what runs then is stopped."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours from the start, those of earlier starts included."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of all workers together: of GPUs, or of CPU workers where there are none."""
    trials: Positive | None = None
    """Trials that came to an end, whether finished, stopped or failed; those that asha has paused may yet go on."""


class TuneConfig(Settings):
    """A sweep: trials of settings drawn from a space."""

    space: Annotated[Space, BeforeValidator(parse_search_space)] = Field(default_factory=dict)
    """What is varied: a setting's key, and one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [...]."""
    trials: Positive = 32
    """Configurations that are tried."""
    metric: Annotated[Objectives, BeforeValidator(parse_objectives), Field(min_length=1)] = ("val/miou",)
    """What is looked for; several, as in '[val/miou, cost/latency_ms]', are weighed as a Pareto front."""
    search: Literal["random", "grid", "optuna"] = "optuna"
    """Where configurations come from: drawn at random, every combination of choices, or Optuna's TPE."""
    scheduler: Scheduler = "asha"
    """Who stops early: nobody; all but the best at each rung; those below the median. pbt: the worst copy the best."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the search."""
    concurrent: Positive | None = None
    """Trials at once; none runs as many as the cluster holds."""
    grace: Positive | None = None
    """asha and median: steps before a trial may be stopped; none takes 15% of train.steps."""
    reduction: Annotated[float, Field(ge=1.5, le=10)] = 4.0
    """asha: one of so many goes on from each rung to the next, twice as far."""
    interval: Positive | None = None
    """pbt: steps between two looks at who copies whom; none takes a tenth of train.steps."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """pbt: share of the worst that copy one of as many best."""
    resample: Fraction = 0.25
    """pbt: probability that a copied setting is drawn anew, rather than made a fifth larger or smaller."""
    warm_start: str | None = None
    """An earlier sweep, its MLflow run's name or id, whose trials the search knows from the start."""
    seeds: Count = 0
    """Runs of the best configuration, with as many seeds, after the search."""
    budget: BudgetConfig = BudgetConfig()

    @property
    def max_trials(self) -> int:
        """Returns how many trials there will be: those that are wanted, or fewer, if a grid has fewer points."""
        if self.search != "grid":
            return self.trials
        return min(self.trials, math.prod(len(next(iter(spelt.values()))) for spelt in self.space.values()))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warm_start is not None and self.search != "optuna":
            raise invalid_setting(
                "tune.search", self.search, "optuna with tune.warm_start; no other search learns from it"
            )
        if self.scheduler == "pbt" and self.search == "grid":
            raise invalid_setting(
                "tune.search", "grid", "random or optuna with tune.scheduler pbt, which moves the values"
            )
        if len(self.metric) > 1 and self.scheduler == "pbt":
            raise invalid_setting("tune.metric", list(self.metric), "one metric with tune.scheduler pbt")
        return self
