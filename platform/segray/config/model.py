"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Literal, Self

from pydantic import model_validator

from segray.config.base import Fraction, Settings
from segray.config.parsers import invalid_setting


class ModelConfig(Settings):
    """Which SegFormer."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    """Size of the model."""
    init: str | None = None
    """Weights to start from: folder, file, hub id or models:/NAME@ALIAS, {variant} in it stands for model.variant."""
    encoder: str = "mit"
    """Encoder: mit, or module:attribute of your own (docs/plugins.md)."""
    head: str = "official"
    """Decode head: official, mmseg, or module:attribute of your own."""
    aux_head: bool = False
    """Train with a second head, an FCN on the third stage, whose loss is weighted by loss.aux_weight."""
    norm_eps: Literal["official", "mmseg", "transformers"] = "official"
    """Whose epsilons the layer norms have; take those of the weights to start from."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping them: less memory, more time."""
    drop_path: Fraction = 0.1
    """Largest stochastic-depth rate; it rises linearly from 0 over the blocks."""
    dropout: Fraction = 0.1
    """Dropout of whole channels before the classifier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {"encoder": ("mit",), "head": ("official", "mmseg")}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values and ":" not in value:
                raise invalid_setting(f"model.{name}", value, f"{', '.join(values)}, or module:attribute")
        return self
