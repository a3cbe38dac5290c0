"""Search space of a sweep: its dimensions, sampling and validation."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from segray import config
from segray.config import Config, DataConfig
from segray.core.errors import ConfigError, did_you_mean
from segray.data.augment.augmenter import validate_augment

Values = dict[str, Any]
"""Settings by dotted key."""

NOT_TUNABLE: tuple[str, ...] = (
    "name",
    "results",
    "tracking.",
    "tune.",
    "train.steps",
    "train.val_every",
    "train.workers",
    "train.score",
)

NOT_TUNABLE += ("train.min_workers", "train.device", "data.root", "data.val_split")
"""Settings, or prefixes of settings, that must be the same in all trials so that they can be compared and placed."""

MAX_CORNERS, NUM_SAMPLES = 1024, 256
"""Number of combinations of bounds and choices, and of random points, that are validated."""


@dataclass(frozen=True)
class Dimension:
    """Dimension of the search space.

    Attributes:
        key: dotted key of the setting.
        kind: kind of the dimension: uniform, loguniform, int, logint or choice.
        values: bounds (low, high), both inclusive; for a choice, all values.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_choice(self) -> bool:
        """True if the dimension is a list of choices."""
        return self.kind == "choice"

    @property
    def is_log(self) -> bool:
        """True if the dimension has a logarithmic scale."""
        return self.kind.startswith("log")

    @property
    def is_integer(self) -> bool:
        """True if the values are integers."""
        return self.kind.endswith("int")

    def from_unit(self, position: float) -> Any:
        """Returns the value at a position from 0 to 1 between the bounds, or in the list of choices."""
        if self.is_choice:
            return self.values[min(int(position * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.is_integer:
            low, high = low - 0.5, high + 0.5
        if self.is_log:
            value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
        else:
            value = low + position * (high - low)
        if self.is_integer:
            return min(max(round(value), self.values[0]), self.values[1])
        return min(max(value, low), high)

    def to_unit(self, value: Any) -> float:
        """Returns the position of a value from 0 to 1 between the bounds, or in the list of choices."""
        if self.is_choice:
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high = (math.log(end) if self.is_log else end for end in self.values)
        return ((math.log(value) if self.is_log else value) - low) / (high - low)

    def contains(self, value: Any) -> bool:
        """Returns True if the dimension contains a value."""
        if self.is_choice:
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]

    def __str__(self) -> str:
        if self.is_choice:
            return ", ".join(str(value) for value in self.values)
        return f"{self.values[0]:g} to {self.values[1]:g}{' (log)' if self.is_log else ''}"


def dimensions(settings: Config) -> tuple[Dimension, ...]:
    """Returns the dimensions of a sweep's search space."""
    return tuple(
        Dimension(key, kind, tuple(values))
        for key, definition in settings.tune.space.items()
        for kind, values in definition.items()
    )


def sample(space: tuple[Dimension, ...], seed: int, number: int) -> Values:
    """Returns random settings that depend only on the seed and the trial number."""
    point = np.random.default_rng([seed, number]).random(len(space)).tolist()
    return {dimension.key: dimension.from_unit(position) for dimension, position in zip(space, point, strict=True)}


def grid(space: tuple[Dimension, ...]) -> Iterator[Values]:
    """Yields all combinations of the values of each dimension."""
    keys = [dimension.key for dimension in space]
    for values in itertools.product(*(dimension.values for dimension in space)):
        yield dict(zip(keys, values, strict=True))


def apply_values(settings: Config, values: Mapping[str, Any]) -> Config:
    """Returns the settings of a trial: the settings of the sweep, updated with the trial's values.

    Raises:
        ConfigError: the settings are invalid.
    """
    return config.build(config.merge(settings.model_dump(mode="json", exclude={"tune"}), values))


def validate_space(settings: Config) -> None:
    """Validates the search space.

    Raises:
        ConfigError: the space is empty, contains an unknown setting or one that must not vary, contains invalid values
            or combinations, or is a grid with numeric ranges or with more points than trials.
    """
    space = dimensions(settings)
    if not space:
        raise ConfigError("tune.space is empty; expected settings to vary, e.g. optim.lr: {loguniform: [1e-5, 1e-3]}.")
    keys = config.flatten(settings.model_copy(update={"tune": config.TuneConfig()}))
    for dimension in space:
        _check_key(dimension.key, keys)
    if settings.tune.search == "grid":
        _check_grid(space, settings.tune.trials)
    samples = (sample(space, settings.tune.seed, number) for number in range(NUM_SAMPLES))
    for values in itertools.chain(_corners(space), samples):
        _check_values(settings, values)


def _check_key(key: str, valid_keys: Collection[str]) -> None:
    if key not in valid_keys:
        full_keys = {name.rsplit(".", 1)[-1]: name for name in valid_keys}
        last_part = key.rsplit(".", 1)[-1]
        hint = did_you_mean(key, valid_keys)
        if not hint and last_part in full_keys:
            hint = f"; did you mean '{full_keys[last_part]}'?"
        raise ConfigError(f"tune.space contains {key}, which is not a setting{hint or '.'}")
    if key.startswith(NOT_TUNABLE):
        raise ConfigError(f"tune.space contains {key}, which must be the same in all trials; set it outside the space.")


def _check_values(settings: Config, values: Values) -> None:
    error = _validation_error(settings, values)
    if error is None:
        return
    causes = [
        {key: value} for key, value in values.items() if str(_validation_error(settings, {key: value})) == str(error)
    ]
    combination = ", ".join(f"{key} {value}" for key, value in (causes[0] if causes else values).items())
    raise ConfigError(f"tune.space contains {combination}, which is invalid: {error}") from error


def _validation_error(settings: Config, values: Values) -> ConfigError | None:
    try:
        data = apply_values(settings, values).data
        _validate_augment(data.model_dump_json(include={"augment", "crop", "short_side"}))
    except ConfigError as error:
        return error
    return None


@cache
def _validate_augment(data: str) -> None:
    """Validates `data.augment`, once for all points that have the same transforms and sizes, because it takes long.

    Args:
        data: JSON text of the settings that make a transform invalid.
    """
    validate_augment(DataConfig.model_validate_json(data))


def _check_grid(space: tuple[Dimension, ...], trials: int) -> None:
    for dimension in space:
        if not dimension.is_choice:
            raise ConfigError(
                f"tune.space.{dimension.key} is {dimension}; expected choice: [...] for tune.search grid; "
                "use choice, or tune.search random or optuna."
            )
    points = math.prod(len(dimension.values) for dimension in space)
    if points > trials:
        sizes = " x ".join(f"{len(dimension.values)} {dimension.key}" for dimension in space)
        raise ConfigError(
            f"the grid has {points:,} points ({sizes}); expected at most tune.trials, {trials}; remove choices, set "
            f"tune.trials to {points}, or use tune.search random or optuna."
        )


def _corners(space: tuple[Dimension, ...]) -> Iterator[Values]:
    """Yields all combinations of bounds and choices, or `MAX_CORNERS` random ones if there are more."""
    count = math.prod(len(dimension.values) for dimension in space)
    if count <= MAX_CORNERS:
        yield from grid(space)
        return
    rng = np.random.default_rng(0)
    for _ in range(MAX_CORNERS):
        yield {dimension.key: dimension.values[int(rng.integers(len(dimension.values)))] for dimension in space}
