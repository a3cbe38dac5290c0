"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config import parsers
from segray.config.base import Fraction, Positive, Settings
from segray.config.parsers import LOSSES, invalid_setting

Terms = tuple[str | dict[str, float], ...]
"""Of NAME, or NAME: weight."""
ClassWeights = str | tuple[float, ...] | None


class LossConfig(Settings):
    """What is minimised: a weighted sum of losses."""

    terms: Annotated[Terms, BeforeValidator(parsers.parse_loss_terms)] = ("cross_entropy",)
    """Losses, a list of NAME or NAME: weight; a NAME may be module:attribute of your own."""
    class_weights: Annotated[ClassWeights, BeforeValidator(parsers.parse_class_weights)] = None
    """Of cross_entropy, ohem and focal: a number for each class, or balanced or median, made of the pixel counts."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of cross_entropy and ohem: share of the target that is spread over all classes."""
    ohem_threshold: Fraction = 0.7
    """Of ohem: pixels whose own class has a lower probability are hard."""
    ohem_share: Fraction = 1 / 16
    """Of ohem: at least this share of an image's pixels is kept."""
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    """Of focal: the higher, the less the easy pixels count."""
    tversky_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Of tversky: weight of false positives."""
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7
    """Of tversky: weight of false negatives."""
    boundary_reach: Positive = 2
    """Of boundary: an outline counts as met within so many pixels."""
    aux_weight: Annotated[float, Field(ge=0)] = 0.4
    """Of model.aux_head's cross-entropy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [term if isinstance(term, str) else next(iter(term)) for term in self.terms]
        for name in names:
            if name not in LOSSES and ":" not in name:
                raise invalid_setting("loss.terms", name, f"{', '.join(LOSSES)}, or module:attribute")
        if len(set(names)) < len(names):
            raise invalid_setting("loss.terms", names, "each loss once; give it a weight instead")
        return self

    def weight_by_loss(self) -> dict[str, float]:
        """Returns the weight of each loss, by name."""
        pairs = [(term, 1.0) if isinstance(term, str) else next(iter(term.items())) for term in self.terms]
        return dict(pairs)
