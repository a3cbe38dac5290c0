"""Base class, field types and helpers of the sections of the settings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from segray.core.parsing import parse_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """Base class of a section of the settings: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def invalid_setting(key: str, value: object, expected: str, hint: str = "") -> ValueError:
    """Returns the error for an invalid value of a setting."""
    return ValueError(f"{key} is {value}; expected {expected}{'; ' + hint if hint else ''}.")


def from_yaml(key: str, value: object, expected: str) -> object:
    """Returns a value from a file unchanged, and the text of a flag parsed as YAML."""
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except ValueError as error:
        raise invalid_setting(key, value, expected) from error


def is_name_entry(entry: object, types: tuple[type, ...]) -> bool:
    """Returns True if an entry is NAME, or {NAME: value} with a value of one of the types."""
    if isinstance(entry, dict):
        return len(entry) == 1 and all(isinstance(key, str) and isinstance(item, types) for key, item in entry.items())
    return isinstance(entry, str)
