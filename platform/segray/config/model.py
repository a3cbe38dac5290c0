"""Settings of the model."""

from typing import Literal, Self

from pydantic import model_validator

from segray.config.fields import Fraction, Settings, invalid_setting


class ModelConfig(Settings):
    """Architecture and initial weights."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    """Size of the SegFormer encoder."""
    init: str | None = None
    """Initial weights: a folder, file, hub id or models:/NAME@ALIAS. {variant} is replaced by model.variant."""
    encoder: str = "mit"
    """Encoder: mit, or a module:attribute of your own code (docs/plugins.md)."""
    head: str = "official"
    """Decode head: official, mmseg, or a module:attribute of your own code."""
    aux_head: bool = False
    """Train with an auxiliary FCN head on the third stage. Its loss has the weight loss.aux_weight."""
    norm_eps_from: Literal["official", "mmseg", "transformers"] = "official"
    """Implementation whose layer norm epsilons are used. Choose the one that produced the initial weights."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    drop_path: Fraction = 0.1
    """Maximum stochastic depth rate. The rate rises linearly from 0 over the blocks."""
    dropout: Fraction = 0.1
    """Dropout rate before the classifier. Whole channels are dropped."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {"encoder": ("mit",), "head": ("official", "mmseg")}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values and ":" not in value:
                raise invalid_setting(f"model.{name}", value, f"{', '.join(values)}, or module:attribute")
        return self
