"""Base class, field types and parsers of the settings. Settings such as the search space are written as YAML."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from segray.config.renamed import current_key

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """Base class of a section of the settings: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


FLOAT_KINDS = ("uniform", "loguniform")
INTEGER_KINDS = ("int", "logint")
KINDS = (*FLOAT_KINDS, *INTEGER_KINDS, "choice")
EXPECTED = "one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [VALUE, ...]"


def parse_search_space(value: object) -> dict[str, dict[str, list[Any]]]:
    """Returns the ranges of a search space by dotted key. Sections may be nested or dotted.

    Raises:
        ValueError: an entry is not a range. The message names it.
    """
    space = from_yaml("tune.space", value, f"settings, each with {EXPECTED}")
    if not isinstance(space, Mapping):
        raise invalid_setting("tune.space", value, f"settings, each with {EXPECTED}")
    return {current_key(key): values for key, values in _leaves(space)}


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
    if not (low < high and isfinite(high - low)):
        raise invalid_setting(key, list(values), "LOW < HIGH")
    if kind.startswith("log") and low <= 0:
        raise invalid_setting(key, list(values), "LOW > 0")
    return [int(low), int(high)] if kind in INTEGER_KINDS else [low, high]


LOSSES = ("cross_entropy", "ohem", "focal", "dice", "tversky", "lovasz", "boundary")
CLASS_WEIGHT_MODES = ("balanced", "median")


def _is_name_entry(entry: object, types: tuple[type, ...]) -> bool:
    """Returns True if an entry is NAME, or {NAME: value} with a value of one of the types."""
    if isinstance(entry, dict):
        return len(entry) == 1 and all(isinstance(key, str) and isinstance(item, types) for key, item in entry.items())
    return isinstance(entry, str)


def from_yaml(key: str, value: object, expected: str) -> object:
    """Returns a value from a file unchanged, and the text of a flag parsed as YAML."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise invalid_setting(key, value, expected) from error


def parse_transforms(value: object) -> object:
    """Returns the list of transforms given in a file or flag."""
    expected = "a list of NAME or NAME: {argument: value}, e.g. '[ScaledCrop, {GaussNoise: {p: 0.2}}]'"
    transforms = from_yaml("data.augment", value, expected)
    if transforms is None:
        return None
    if not isinstance(transforms, list | tuple):
        raise invalid_setting("data.augment", value, expected)
    if not all(_is_name_entry(transform, (dict, type(None))) for transform in transforms):
        raise invalid_setting("data.augment", value, expected)
    return transforms


def parse_loss_terms(value: object) -> object:
    """Returns the list of losses given in a file or flag. A single loss needs no list."""
    expected = (
        f"a list of NAME or NAME: weight of {', '.join(LOSSES)} or module:attribute, e.g. '[ohem, {{dice: 0.5}}]'"
    )
    terms = from_yaml("loss.terms", value, expected)
    terms = [terms] if isinstance(terms, str) else terms
    if not isinstance(terms, list | tuple) or not terms:
        raise invalid_setting("loss.terms", value, expected)
    if not all(_is_name_entry(term, (int, float)) for term in terms):
        raise invalid_setting("loss.terms", value, expected)
    return terms


def parse_class_weights(value: object) -> object:
    """Returns the class weights given in a file or flag."""
    expected = f"{', '.join(CLASS_WEIGHT_MODES)}, or a list of numbers, one per class, each at least 0"
    weights = from_yaml("loss.class_weights", value, expected)
    if weights is None or weights in CLASS_WEIGHT_MODES:
        return weights
    is_valid = isinstance(weights, list | tuple) and all(
        isinstance(item, int | float) and item >= 0 for item in weights
    )
    if not is_valid:
        raise invalid_setting("loss.class_weights", value, expected)
    return weights


def invalid_setting(key: str, value: object, expected: str, hint: str = "") -> ValueError:
    """Returns the error for an invalid value of a setting."""
    return ValueError(f"{key} is {value}; expected {expected}{'; ' + hint if hint else ''}.")


def parse_numbers(value: object) -> object:
    """Returns the list of numbers given in a file, or in a flag separated by commas: `3,5`."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]


def parse_objectives(value: object) -> object:
    """Returns the list of metrics given in a file or flag. A single metric needs no list."""
    metrics = from_yaml("tune.metrics", value, "a metric, or a list of metrics")
    return [metrics] if isinstance(metrics, str) else metrics


def parse_class_floors(value: object) -> object:
    """Returns the minimum IoU of every class, or of named classes, given in a file or flag."""
    expected = "a number from 0 to 1 for all classes, or one per named class, e.g. '{road: 0.9, person: 0.4}'"
    floors = from_yaml("promote.min_class_iou", value, expected)
    by_class = floors if isinstance(floors, dict) else {"": floors}
    if not all(isinstance(name, str) and _is_fraction(floor) for name, floor in by_class.items()):
        raise invalid_setting("promote.min_class_iou", value, expected)
    return floors


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def parse_class_names(value: object) -> object:
    """Returns the list of class names given in a file or flag. A single name needs no list."""
    expected = "a list of class names, e.g. '[road, person]'"
    names = from_yaml("promote.allowed_class_changes", value, expected)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise invalid_setting("promote.allowed_class_changes", value, expected)
    return names
