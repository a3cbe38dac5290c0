"""Parsing of JSON and YAML from any origin, and summaries of the errors on one line.

The parsers of the standard library and of PyYAML raise many exception types, and a small YAML file can expand to any
size through its aliases. The functions of this module raise only ValueError.
"""

import json
import re
from typing import Any

import yaml
from pydantic import ValidationError

MAX_NODES = 100_000
"""Maximum number of values in a YAML document after its aliases are expanded."""
MAX_SUMMARY = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def parse_json(text: bytes | str) -> Any:
    """Parses a JSON document.

    Raises:
        ValueError: the text is not JSON, is not encoded as UTF-8, UTF-16 or UTF-32, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """Parses a YAML document without constructing objects of user-defined types.

    Raises:
        ValueError: the text is not YAML, is nested too deeply, or expands to more than `MAX_NODES` values.
    """
    try:
        tree = yaml.safe_load(text)
        _count_nodes(tree, {})
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (yaml.YAMLError, TypeError, AttributeError) as error:  # PyYAML's constructors do not check every value
        raise ValueError(summarize_error(error)) from error
    return tree


def _count_nodes(node: Any, counts: dict[int, int]) -> int:
    """Returns the number of values below a node; an alias counts as often as it occurs."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in counts:
        counts[id(node)] = MAX_NODES  # a node that contains itself
        children = (*node, *node.values()) if isinstance(node, dict) else node
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    if counts[id(node)] > MAX_NODES:
        raise ValueError(f"expands to more than {MAX_NODES} values through its aliases")
    return counts[id(node)]


def summarize_error(error: BaseException) -> str:
    """Returns the message of an error as one line of at most 300 characters without control characters.

    Of pydantic's errors, only the first is described.
    """
    if isinstance(error, ValidationError):
        first, *others = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"]))
        more = f", and {len(others)} more errors" if others else ""
        return _clip(f"{place + ': ' if place else ''}{first['msg']}") + more
    return _clip(str(error).rstrip(".")) or type(error).__name__


def _clip(text: str) -> str:
    line = " ".join(_CONTROL.sub(" ", text[: 4 * MAX_SUMMARY]).split())
    return line if len(line) <= MAX_SUMMARY else f"{line[:MAX_SUMMARY]}..."
