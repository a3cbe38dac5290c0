"""Settings of the promotion gates that a model must pass before it is served."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from segray.config.fields import Fraction, Settings, from_yaml, invalid_setting


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


ClassFloors = float | dict[str, float]
"""Minimum IoU of every class, or by class name."""
ClassNames = tuple[str, ...]


class PromoteConfig(Settings):
    """Promotion gates. A model must pass every gate; a gate that cannot be evaluated fails."""

    max_miou_drop: Fraction = 0.01
    """Maximum drop in mean IoU from the champion. The 95% interval of the difference must be above minus this value."""
    max_class_iou_drop: Fraction = 0.05
    """Maximum drop in the IoU of any class from the champion."""
    min_class_iou: Annotated[ClassFloors, BeforeValidator(parse_class_floors)] = 0.0
    """Minimum IoU of every class, or of named classes: '{road: 0.9, person: 0.4}'. 0 disables the gate."""
    max_latency_ratio: Annotated[float, Field(ge=1)] | None = 2.0
    """Maximum time per image as a multiple of the champion's. Use none for no limit."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum time per image in milliseconds on a node that would serve the model. Defaults to no limit."""
    max_size_mib: Annotated[float, Field(gt=0)] | None = None
    """Maximum size of the weights in MiB. Defaults to no limit."""
    allowed_class_changes: Annotated[ClassNames, BeforeValidator(parse_class_names)] = ()
    """All classes that only the champion or only the challenger has: '[road, person]'."""
