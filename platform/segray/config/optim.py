"""Settings of the optimizer and the learning rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.base import Count, Fraction, Settings

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Settings):
    """AdamW and its learning rate schedule."""

    lr: Annotated[float, Field(gt=0)] = 6e-5
    """Peak learning rate of the encoder."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 10.0
    """Factor by which lr is multiplied for the head."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of all parameters except those of layer norms."""
    beta1: DecayRate = 0.9
    """Decay rate of the first moment."""
    beta2: DecayRate = 0.999
    """Decay rate of the second moment."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Ratio of the learning rate of each encoder block to that of the next deeper block."""
    schedule: Literal["poly", "cosine", "one_cycle"] = "poly"
    """Schedule: poly (polynomial, as published), cosine (half a cosine), one_cycle (half a cosine up, one down)."""
    warmup_steps: Count = 1500
    """Number of warm-up steps. Warm-up is linear; with one_cycle, it follows half a cosine."""
    warmup_lr_ratio: Fraction = 1e-6
    """Ratio of the learning rate at the start of the warm-up to lr."""
    min_lr_ratio: Fraction = 0.0
    """Ratio of the learning rate at the end of the schedule to lr."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial decay (schedule poly)."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum gradient norm. Larger gradients are scaled down to it."""
