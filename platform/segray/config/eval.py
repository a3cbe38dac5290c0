"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config import parsers
from segray.config.base import Positive, Settings
from segray.config.data import CROP_MULTIPLE
from segray.config.parsers import invalid_setting

Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=10)], ...], BeforeValidator(parsers.parse_numbers)]
BandWidths = Annotated[tuple[Positive, ...], BeforeValidator(parsers.parse_numbers)]

STRIDE_MULTIPLE = 4  # a model's scores are a quarter of its image


class EvalConfig(Settings):
    """How a model is evaluated."""

    align: Positive = 32
    """Sides are rounded up to a multiple of this for the forward pass; counted at the mask's own size."""
    mode: Literal["whole", "slide"] = "whole"
    """An image is looked at whole, or in windows that slide over it and are blended."""
    crop: Positive | None = None
    """slide: side of a window in px, a multiple of 32; none takes data.crop."""
    stride: Positive | None = None
    """slide: px from a window to the next, a multiple of 4; none takes three quarters of the window."""
    windows: Positive = 4
    """slide: windows in one forward pass."""
    scales: Annotated[Scales, Field(min_length=1)] = (1.0,)
    """Scales of the image whose probabilities are averaged."""
    flip: bool = False
    """Average with the mirror image, at each scale."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass."""
    absent: Literal["skip", "zero", "nan"] = "skip"
    """What classes that are neither true nor predicted are to the means."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Of the F-score: how many times as much recall weighs as precision."""
    calibration: bool = False
    """Count how sure the model is, too."""
    boundary: BandWidths = ()
    """Widths (px) for which boundary IoU is counted."""
    trimap: BandWidths = ()
    """Widths (px) of the band around contours in which IoU is counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        crop, stride = self.crop, self.stride
        if crop is not None and crop % CROP_MULTIPLE:
            raise invalid_setting("eval.crop", crop, f"a multiple of {CROP_MULTIPLE}")
        if stride is not None and stride % STRIDE_MULTIPLE:
            raise invalid_setting("eval.stride", stride, f"a multiple of {STRIDE_MULTIPLE}")
        return self

    def validate_windows(self, crop: int) -> None:
        """Refuses windows that leave pixels out, or whose sides a model's scores do not divide.

        Args:
            crop: side of a window where no other is given.

        Raises:
            ValueError: they are such.
        """
        side = self.crop or crop
        if self.mode == "slide" and self.stride is not None and self.stride > side:
            raise invalid_setting(
                "eval.stride", self.stride, f"at most a window's {side}; pixels between would not be seen"
            )
        if self.mode == "slide" and self.align % CROP_MULTIPLE:
            raise invalid_setting("eval.align", self.align, f"a multiple of {CROP_MULTIPLE} where windows slide")
