"""Settings of a sweep: search space, metrics, scheduler and budget."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.fields import (
    Count,
    Fraction,
    Positive,
    Settings,
    invalid_setting,
    parse_objectives,
    parse_search_space,
)

Space = dict[str, dict[str, Any]]
"""Search space: ranges by dotted key, such as {"optim.lr": {"loguniform": [1e-5, 1e-3]}}."""
Objectives = tuple[str, ...]


def _none_is_a_name(value: Any) -> Any:
    """Returns "none" for None, because the command line reads `none` as None."""
    return "none" if value is None else value


Scheduler = Annotated[Literal["none", "asha", "median", "pbt"], BeforeValidator(_none_is_a_name)]


class BudgetConfig(Settings):
    """Budget of a sweep. When one of its limits is reached, running trials are stopped and the sweep ends."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Maximum duration in hours, including earlier starts of a resumed sweep."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Maximum GPU hours of all workers together; without GPUs, hours of CPU workers."""
    trials: Positive | None = None
    """Maximum number of ended trials: finished, stopped or failed. Trials paused by asha do not count."""


class TuneConfig(Settings):
    """Hyperparameter search over a space of settings."""

    space: Annotated[Space, BeforeValidator(parse_search_space)] = Field(default_factory=dict)
    """Search space: for each setting, one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [...]."""
    trials: Positive = 32
    """Number of configurations to try."""
    metrics: Annotated[Objectives, BeforeValidator(parse_objectives), Field(min_length=1)] = ("val/miou",)
    """Metric to optimize. Several, such as '[val/miou, cost/latency_ms]', give a Pareto front."""
    search: Literal["random", "grid", "optuna"] = "optuna"
    """Search algorithm: random, grid (every combination of the choices), or optuna (Optuna's TPE)."""
    scheduler: Scheduler = "asha"
    """Scheduler: none, asha (only the best pass a rung), median (those below stop), pbt (the worst copy the best)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of the search."""
    max_concurrent: Positive | None = None
    """Maximum number of concurrent trials. Defaults to the capacity of the cluster."""
    grace_steps: Positive | None = None
    """Schedulers asha and median: minimum number of steps before a trial may stop. Defaults to 15% of train.steps."""
    reduction_factor: Annotated[float, Field(ge=1.5, le=10)] = 4.0
    """Scheduler asha: one in this many trials continues from each rung to the next, which is twice as far."""
    perturbation_interval: Positive | None = None
    """Scheduler pbt: number of steps between exchanges of trials. Defaults to a tenth of train.steps."""
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Scheduler pbt: fraction of the worst trials that copy one of the same fraction of the best."""
    resample_prob: Fraction = 0.25
    """Scheduler pbt: probability that a copied setting is resampled; otherwise it changes by a fifth up or down."""
    warm_start: str | None = None
    """Name or id of the MLflow run of an earlier sweep. The search (optuna only) starts with its trials."""
    seeds: Count = 0
    """Number of additional runs of the best configuration after the search, each with another seed."""
    budget: BudgetConfig = BudgetConfig()

    @property
    def max_trials(self) -> int:
        """Maximum number of trials: `trials`, or the number of grid points if that is lower."""
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
        if len(self.metrics) > 1 and self.scheduler == "pbt":
            raise invalid_setting("tune.metrics", list(self.metrics), "one metric with tune.scheduler pbt")
        return self
