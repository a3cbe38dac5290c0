"""Binary units, and numbers in JSON."""

from math import isnan
from typing import Any

MIB, GIB = 2**20, 2**30


def nan_to_none(value: Any) -> Any:
    """Returns a value with each nan in it replaced by `None`, because JSON has no nan.

    Args:
        value: number, text, or a dict, list or tuple of such values. Keys become text, and tuples become lists.
    """
    if isinstance(value, dict):
        return {str(key): nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
