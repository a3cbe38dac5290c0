"""Ranges of settings, as a search space spells them."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from segray.config.spelt import from_yaml, impossible

NUMBERS = ("uniform", "loguniform")
WHOLE = ("int", "logint")
KINDS = (*NUMBERS, *WHOLE, "choice")
SPELT = "one of uniform, loguniform, int, logint: [LOW, HIGH], or choice: [VALUE, ...]"


def ranges(value: object) -> dict[str, dict[str, list[Any]]]:
    """Returns the ranges of a file, or of a flag, by dotted key; sections may be nested or dotted.

    Raises:
        ValueError: something is no range; it is named.
    """
    found = from_yaml("tune.space", value, f"settings, each with {SPELT}")
    if not isinstance(found, Mapping):
        raise impossible("tune.space", value, f"settings, each with {SPELT}")
    return dict(_leaves(found))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for name, inner in tree.items():
        key = f"{prefix}{name}"
        found = from_yaml(f"tune.space.{key}", inner, SPELT)
        if not isinstance(found, Mapping) or not found:
            raise impossible(f"tune.space.{key}", inner, SPELT)
        kinds = [kind for kind in found if kind in KINDS]
        if kinds:
            yield key, _range(f"tune.space.{key}", found, kinds)
        else:
            yield from _leaves(found, f"{key}.")


def _range(key: str, found: Mapping[str, Any], kinds: list[str]) -> dict[str, list[Any]]:
    if len(found) > 1:
        raise impossible(key, dict(found), SPELT, "name one alone")
    kind = kinds[0]
    values = found[kind]
    if not isinstance(values, list | tuple):
        raise impossible(f"{key}.{kind}", values, "a list")
    if kind == "choice":
        if not values:
            raise impossible(f"{key}.choice", [], "at least one value")
        if any(one in values[:index] for index, one in enumerate(values)):
            raise impossible(f"{key}.choice", list(values), "each value once")
        return {kind: list(values)}
    return {kind: _bounds(f"{key}.{kind}", kind, values)}


def _bounds(key: str, kind: str, values: Any) -> list[Any]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise impossible(key, list(values), "two numbers, [LOW, HIGH]") from error
    if kind in WHOLE and not (low.is_integer() and high.is_integer()):
        raise impossible(key, list(values), "two whole numbers, [LOW, HIGH]")
    if not (low < high and isfinite(high - low)):
        raise impossible(key, list(values), "LOW below HIGH")
    if kind.startswith("log") and low <= 0:
        raise impossible(key, list(values), "LOW above 0")
    return [int(low), int(high)] if kind in WHOLE else [low, high]
