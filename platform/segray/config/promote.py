"""The settings of a promotion: what a model has to be before it is served."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from segray.config.base import Fraction, Settings
from segray.config.parsers import parse_class_floors, parse_class_names

ClassFloors = float | dict[str, float]
"""Of every class, or by name."""
ClassNames = tuple[str, ...]


class PromoteConfig(Settings):
    """Gates: each has to be passed; none is left open by what cannot be told."""

    miou_drop: Fraction = 0.01
    """How much lower than the champion's the mean IoU may be: the 95% interval of the gain lies above -this."""
    class_drop: Fraction = 0.05
    """How much lower the IoU of any class may be than the champion's."""
    class_floor: Annotated[ClassFloors, BeforeValidator(parse_class_floors)] = 0.0
    """What the IoU of every class is at least, or of those named: '{road: 0.9, person: 0.4}'."""
    slower: Annotated[float, Field(ge=1)] | None = 2.0
    """How many times the champion's time for an image it may take; none lets it take any."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds that an image may take where the promotion runs; none lets it take any."""
    size_mib: Annotated[float, Field(gt=0)] | None = None
    """MiB that the weights may have; none lets them have any."""
    changed_classes: Annotated[ClassNames, BeforeValidator(parse_class_names)] = ()
    """All classes that one of champion and challenger has and the other has not: '[road, person]'."""
