"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.base import Count, Fraction, Settings

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Settings):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0)] = 6e-5
    """Peak learning rate of the encoder."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 10.0
    """The head learns at lr times this."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of every parameter except the layer norms."""
    beta1: DecayRate = 0.9
    """Decay of the first moment."""
    beta2: DecayRate = 0.999
    """Decay of the second moment."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block of the encoder learns at this times the rate of the one above it."""
    schedule: Literal["poly", "cosine", "one_cycle"] = "poly"
    """How the rate falls: as published, along half a cosine, or up and down along two."""
    warmup_steps: Count = 1500
    """Steps of warm-up: linear, or, of one_cycle, half a cosine."""
    warmup_ratio: Fraction = 1e-6
    """The warm-up starts at lr times this."""
    min_ratio: Fraction = 0.0
    """The schedule ends at lr times this."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial decay."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; a larger one is scaled down to it."""
