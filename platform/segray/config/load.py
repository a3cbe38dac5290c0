"""Builds a Config from files and overrides, and translates pydantic's errors."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segray.config.renamed import use_current_names
from segray.config.root import Config
from segray.core.errors import ConfigError, format_list
from segray.core.parsing import parse_yaml, summarize_error


def flatten(config: BaseModel) -> dict[str, Any]:
    """Returns all settings by dotted key, in order of declaration."""
    return dict(_flatten(config.model_dump(mode="json")))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` updated with `over`, section by section. Dotted keys in `over` are paths.

    Earlier names of settings become today's, so that an earlier name in a flag overrides today's name in a file.
    """
    return _merge(use_current_names(base), use_current_names(_merge({}, over)))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        head, _, rest = key.partition(".")
        inner = {rest: value} if rest else value
        if isinstance(inner, Mapping):
            section = merged.get(head)
            merged[head] = _merge(section if isinstance(section, Mapping) else {}, inner)
        else:
            merged[head] = inner
    return merged


def load(files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the Config built from the files and the overrides. Later files override earlier ones.

    Raises:
        ConfigError: a file is missing or is not a YAML mapping, or a setting is invalid.
    """
    tree: dict[str, Any] = {}
    for file in files:
        tree = merge(tree, _read_yaml(file))
    return build(merge(tree, overrides or {}))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {file} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {file} is not valid YAML: {summarize_error(error)}.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {file} contains a {type(tree).__name__}; expected sections of settings.")
    _check_keys(file, tree)
    return tree


def _check_keys(file: Path, tree: Mapping[Any, Any]) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ConfigError(f"config file {file} contains the key {key!r}; expected the name of a setting.")
        if isinstance(value, Mapping):
            _check_keys(file, value)


def build(tree: Mapping[str, Any]) -> Config:
    """Returns the Config of a tree of settings. Each field coerces its value (`1e-5` becomes a number).

    Raises:
        ConfigError: settings are invalid. The message has one line per error: dotted key, value and expected value.
    """
    try:
        return Config.model_validate(merge({}, tree))
    except ValidationError as error:
        raise ConfigError(format_errors(error)) from error


def format_errors(error: ValidationError) -> str:
    """Returns pydantic's errors as text, one per line: `optim.lr is -1; expected greater than 0.`."""
    lines = [_explain(details) for details in error.errors()]
    return lines[0] if len(lines) == 1 else f"{len(lines)} settings are invalid:{format_list(lines)}"


def _explain(details: ErrorDetails) -> str:
    key = " ".join(".".join(str(part) for part in details["loc"]).split())
    if details["type"] == "extra_forbidden":
        inner = details["input"]
        first = next(iter(_flatten(inner)), None) if isinstance(inner, Mapping) else None
        key = f"{key}.{first[0]}" if first else key
        return f"{key} is not a setting{_nearest_key(key) or '.'}"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    expected = details["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} is {reprlib.repr(details['input'])}; expected {expected}."


def _nearest_key(key: str) -> str:
    keys = [*flatten(Config()), *Config.model_fields]
    close = get_close_matches(key, keys, n=1, cutoff=0.6)
    if not close:  # `lr` or `learning.lr` for `optim.lr`: compare only the last part
        leaf = key.rsplit(".", 1)[-1]
        leaves = {name.rsplit(".", 1)[-1]: name for name in keys}
        close = [leaves[match] for match in get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""
