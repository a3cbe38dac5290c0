"""Settings of a sweep: search space, metrics, scheduler and budget."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.fields import Count, Fraction, Positive, Settings, from_yaml, invalid_setting
from segray.config.renamed import current_key

FLOAT_KINDS = ("uniform", "loguniform")
INTEGER_KINDS = ("int", "logint")
KINDS = (*FLOAT_KINDS, *INTEGER_KINDS, "choice")
EXPECTED = "one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [VALUE, ...]"


def parse_search_space(value: object) -> dict[str, dict[str, list[Any]]]:
    """Returns the ranges of a search space by dotted key. Sections may be nested or dotted.

    Raises:
        ValueError: an entry is not a range, or the same setting has two entries. The message names it.
    """
    space = from_yaml("tune.space", value, f"settings, each with {EXPECTED}")
    if not isinstance(space, Mapping):
        raise invalid_setting("tune.space", value, f"settings, each with {EXPECTED}")
    ranges: dict[str, dict[str, list[Any]]] = {}
    for key, values in _leaves(space):
        current = current_key(key)
        if current in ranges:
            raise invalid_setting(f"tune.space.{key}", values, f"one entry for {current}")
        ranges[current] = values
    return ranges


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for name, inner in tree.items():
        key = f"{prefix}{name}"
        entry = from_yaml(f"tune.space.{key}", inner, EXPECTED)
        if not isinstance(entry, Mapping) or not entry:
            raise invalid_setting(f"tune.space.{key}", inner, EXPECTED)
        kinds = [kind for kind in entry if kind in KINDS]
        if kinds:
            yield key, _parse_range(f"tune.space.{key}", entry, kinds)
        else:
            yield from _leaves(entry, f"{key}.")


def _parse_range(key: str, entry: Mapping[str, Any], kinds: list[str]) -> dict[str, list[Any]]:
    if len(entry) > 1:
        raise invalid_setting(key, dict(entry), EXPECTED, "use only one of them")
    kind = kinds[0]
    values = entry[kind]
    if not isinstance(values, list | tuple):
        raise invalid_setting(f"{key}.{kind}", values, "a list")
    if kind == "choice":
        if not values:
            raise invalid_setting(f"{key}.choice", [], "at least one value")
        if any(choice in values[:index] for index, choice in enumerate(values)):
            raise invalid_setting(f"{key}.choice", list(values), "distinct values")
        return {kind: list(values)}
    return {kind: _parse_bounds(f"{key}.{kind}", kind, values)}


def _parse_bounds(key: str, kind: str, values: Any) -> list[Any]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise invalid_setting(key, list(values), "two numbers, [LOW, HIGH]") from error
    if kind in INTEGER_KINDS and not (low.is_integer() and high.is_integer()):
        raise invalid_setting(key, list(values), "two integers, [LOW, HIGH]")
    if not (low < high and math.isfinite(high - low)):
        raise invalid_setting(key, list(values), "LOW < HIGH")
    if kind.startswith("log") and low <= 0:
        raise invalid_setting(key, list(values), "LOW > 0")
    return [int(low), int(high)] if kind in INTEGER_KINDS else [low, high]


def parse_objectives(value: object) -> object:
    """Returns the list of metrics given in a file or flag. A single metric needs no list."""
    metrics = from_yaml("tune.metrics", value, "a metric, or a list of metrics")
    return [metrics] if isinstance(metrics, str) else metrics


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
    """Scheduler: none, asha (best trials continue), median (trials below the median stop), pbt (worst copy best)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of the search."""
    max_concurrent: Positive | None = None
    """Maximum number of concurrent trials. Defaults to the capacity of the cluster."""
    grace_steps: Positive | None = None
    """Schedulers asha and median: minimum number of steps before a trial may stop. Defaults to 15% of train.steps."""
    reduction_factor: Annotated[float, Field(ge=1.5, le=10)] = 4.0
    """Scheduler asha: one of this many trials continues beyond each rung. Each rung has twice the steps of the last."""
    perturbation_interval: Positive | None = None
    """Scheduler pbt: number of steps between exchanges of trials. Defaults to a tenth of train.steps."""
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Scheduler pbt: fraction of the trials that are replaced (the worst) and that are copied (the best)."""
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
            raise invalid_setting("tune.search", self.search, "optuna, the only search that can use tune.warm_start")
        if self.scheduler == "pbt" and self.search == "grid":
            raise invalid_setting(
                "tune.search", "grid", "random or optuna; tune.scheduler pbt changes values, so they are not on a grid"
            )
        if len(self.metrics) > 1 and self.scheduler == "pbt":
            raise invalid_setting("tune.metrics", list(self.metrics), "one metric with tune.scheduler pbt")
        return self
