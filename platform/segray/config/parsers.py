"""Parsers of settings that are written as YAML in files and flags, such as the search space."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import yaml

from segray.config.renamed import current_key

NUMBERS = ("uniform", "loguniform")
INTEGER_KINDS = ("int", "logint")
KINDS = (*NUMBERS, *INTEGER_KINDS, "choice")
EXPECTED = "one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [VALUE, ...]"


def parse_search_space(value: object) -> dict[str, dict[str, list[Any]]]:
    """Returns the ranges of a search space by dotted key. Sections may be nested or dotted.

    Raises:
        ValueError: an entry is not a range. The message names it.
    """
    found = from_yaml("tune.space", value, f"settings, each with {EXPECTED}")
    if not isinstance(found, Mapping):
        raise invalid_setting("tune.space", value, f"settings, each with {EXPECTED}")
    return {current_key(key): values for key, values in _leaves(found)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for name, inner in tree.items():
        key = f"{prefix}{name}"
        found = from_yaml(f"tune.space.{key}", inner, EXPECTED)
        if not isinstance(found, Mapping) or not found:
            raise invalid_setting(f"tune.space.{key}", inner, EXPECTED)
        kinds = [kind for kind in found if kind in KINDS]
        if kinds:
            yield key, _range(f"tune.space.{key}", found, kinds)
        else:
            yield from _leaves(found, f"{key}.")


def _range(key: str, found: Mapping[str, Any], kinds: list[str]) -> dict[str, list[Any]]:
    if len(found) > 1:
        raise invalid_setting(key, dict(found), EXPECTED, "name one alone")
    kind = kinds[0]
    values = found[kind]
    if not isinstance(values, list | tuple):
        raise invalid_setting(f"{key}.{kind}", values, "a list")
    if kind == "choice":
        if not values:
            raise invalid_setting(f"{key}.choice", [], "at least one value")
        if any(one in values[:index] for index, one in enumerate(values)):
            raise invalid_setting(f"{key}.choice", list(values), "each value once")
        return {kind: list(values)}
    return {kind: _bounds(f"{key}.{kind}", kind, values)}


def _bounds(key: str, kind: str, values: Any) -> list[Any]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise invalid_setting(key, list(values), "two numbers, [LOW, HIGH]") from error
    if kind in INTEGER_KINDS and not (low.is_integer() and high.is_integer()):
        raise invalid_setting(key, list(values), "two whole numbers, [LOW, HIGH]")
    if not (low < high and isfinite(high - low)):
        raise invalid_setting(key, list(values), "LOW below HIGH")
    if kind.startswith("log") and low <= 0:
        raise invalid_setting(key, list(values), "LOW above 0")
    return [int(low), int(high)] if kind in INTEGER_KINDS else [low, high]


LOSSES = ("cross_entropy", "ohem", "focal", "dice", "tversky", "lovasz", "boundary")
CLASS_WEIGHT_MODES = ("balanced", "median")


def _is_named(found: object, kinds: tuple[type, ...]) -> bool:
    """Returns True if `found` is NAME, or {NAME: value} with a value of one of the types `kinds`."""
    if isinstance(found, dict):
        return len(found) == 1 and all(isinstance(name, str) and isinstance(of, kinds) for name, of in found.items())
    return isinstance(found, str)


def from_yaml(key: str, value: object, expected: str) -> object:
    """Returns a value from a file unchanged, and the text of a flag parsed as YAML."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise invalid_setting(key, value, expected) from error


def parse_transforms(value: object) -> object:
    """Returns the list of transforms given in a file or flag."""
    expected = "a list of NAME or NAME: {argument: value}, e.g. '[ScaledCrop, {GaussNoise: {p: 0.2}}]'"
    found = from_yaml("data.augment", value, expected)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(_is_named(one, (dict, type(None))) for one in found):
        raise invalid_setting("data.augment", value, expected)
    return found


def parse_loss_terms(value: object) -> object:
    """Returns the list of losses given in a file or flag. A single loss needs no list."""
    expected = (
        f"a list of NAME or NAME: weight of {', '.join(LOSSES)} or module:attribute, e.g. '[ohem, {{dice: 0.5}}]'"
    )
    found = from_yaml("loss.terms", value, expected)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not found or not all(_is_named(one, (int, float)) for one in found):
        raise invalid_setting("loss.terms", value, expected)
    return found


def parse_class_weights(value: object) -> object:
    """Returns the class weights given in a file or flag."""
    expected = f"{', '.join(CLASS_WEIGHT_MODES)}, or a list of numbers, one for each class, none below 0"
    found = from_yaml("loss.class_weights", value, expected)
    if found is None or found in CLASS_WEIGHT_MODES:
        return found
    numbers = isinstance(found, list | tuple) and all(isinstance(one, int | float) and one >= 0 for one in found)
    if not numbers:
        raise invalid_setting("loss.class_weights", value, expected)
    return found


def invalid_setting(key: str, value: object, expected: str, advice: str = "") -> ValueError:
    """Returns the error for an invalid value of a setting."""
    return ValueError(f"{key} is {value}; expected {expected}{'; ' + advice if advice else ''}.")


def parse_numbers(value: object) -> object:
    """Returns the list of numbers given in a file, or in a flag separated by commas: `3,5`."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]


def parse_objectives(value: object) -> object:
    """Returns the list of metrics given in a file or flag. A single metric needs no list."""
    found = from_yaml("tune.metrics", value, "a metric, or a list of them")
    return [found] if isinstance(found, str) else found


def parse_class_floors(value: object) -> object:
    """Returns the minimum IoU of every class, or of named classes, given in a file or flag."""
    expected = "a number from 0 to 1 for every class, or one for each that is named, e.g. '{road: 0.9, person: 0.4}'"
    found = from_yaml("promote.min_class_iou", value, expected)
    given = found if isinstance(found, dict) else {"": found}
    if not all(isinstance(name, str) and _is_share(floor) for name, floor in given.items()):
        raise invalid_setting("promote.min_class_iou", value, expected)
    return found


def _is_share(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found <= 1


def parse_class_names(value: object) -> object:
    """Returns the list of class names given in a file or flag. A single name needs no list."""
    expected = "names of classes, e.g. '[road, person]'"
    found = from_yaml("promote.allowed_class_changes", value, expected)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise invalid_setting("promote.allowed_class_changes", value, expected)
    return found
