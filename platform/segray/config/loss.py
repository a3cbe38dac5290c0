"""Settings of the loss."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.fields import Fraction, Positive, Settings, from_yaml, invalid_setting, is_name_entry

LOSSES = ("cross_entropy", "ohem", "focal", "dice", "tversky", "lovasz", "boundary")
CLASS_WEIGHT_MODES = ("balanced", "median")


def parse_loss_terms(value: object) -> object:
    """Returns the list of losses given in a file or flag. A single loss needs no list."""
    expected = (
        f"a list of NAME or NAME: weight of {', '.join(LOSSES)} or module:attribute, e.g. '[ohem, {{dice: 0.5}}]'"
    )
    terms = from_yaml("loss.terms", value, expected)
    terms = [terms] if isinstance(terms, str) else terms
    if not isinstance(terms, list | tuple) or not terms:
        raise invalid_setting("loss.terms", value, expected)
    if not all(is_name_entry(term, (int, float)) for term in terms):
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


Terms = tuple[str | dict[str, float], ...]
"""Losses, each NAME or NAME: weight."""
ClassWeights = str | tuple[float, ...] | None


class LossConfig(Settings):
    """The training objective: a weighted sum of losses."""

    terms: Annotated[Terms, BeforeValidator(parse_loss_terms)] = ("cross_entropy",)
    """Losses: a list of NAME or NAME: weight. A name may be a module:attribute of your own code."""
    class_weights: Annotated[ClassWeights, BeforeValidator(parse_class_weights)] = None
    """Class weights of cross_entropy, ohem and focal: one number per class, or balanced or median (pixel counts)."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of cross_entropy and ohem: fraction of the target that is spread over all classes."""
    ohem_threshold: Fraction = 0.7
    """Probability threshold of ohem: pixels whose true class has a lower probability are hard."""
    ohem_min_kept: Fraction = 1 / 16
    """Minimum fraction of an image's pixels that ohem keeps."""
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    """Focusing parameter gamma of focal. Higher values reduce the weight of easy pixels."""
    tversky_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Weight of false positives in tversky."""
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7
    """Weight of false negatives in tversky."""
    boundary_width_px: Positive = 2
    """Maximum distance in px at which boundary treats two outlines as matching."""
    aux_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the cross-entropy of the auxiliary head (model.aux_head)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [term if isinstance(term, str) else next(iter(term)) for term in self.terms]
        for name in names:
            if name not in LOSSES and ":" not in name:
                raise invalid_setting("loss.terms", name, f"{', '.join(LOSSES)}, or module:attribute")
        if len(set(names)) < len(names):
            raise invalid_setting("loss.terms", names, "each loss once; use a weight, such as '{dice: 2}'")
        return self

    def weight_by_loss(self) -> dict[str, float]:
        """Returns the weight of each loss, by name."""
        pairs = [(term, 1.0) if isinstance(term, str) else next(iter(term.items())) for term in self.terms]
        return dict(pairs)
