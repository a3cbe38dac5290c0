"""Settings of the evaluation of a model."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.data import CROP_MULTIPLE
from segray.config.fields import Positive, Settings, invalid_setting


def parse_numbers(value: object) -> object:
    """Returns the list of numbers given in a file, or in a flag separated by commas: `3,5`."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]


Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=10)], ...], BeforeValidator(parse_numbers)]
BandWidths = Annotated[tuple[Positive, ...], BeforeValidator(parse_numbers)]

STRIDE_MULTIPLE = 4  # a model's logits have a quarter of the image's resolution


class EvalConfig(Settings):
    """Evaluation of a model."""

    size_multiple: Positive = 32
    """Image sides are rounded up to a multiple of this for the forward pass. Metrics use the size of the mask."""
    mode: Literal["whole", "slide"] = "whole"
    """Inference mode: whole (the entire image at once) or slide (overlapping windows that are blended)."""
    crop: Positive | None = None
    """Mode slide: side of a window in px, a multiple of 32. Defaults to data.crop."""
    stride: Positive | None = None
    """Mode slide: distance between windows in px, a multiple of 4. Defaults to three quarters of the window."""
    window_batch: Positive = 4
    """Mode slide: number of windows per forward pass."""
    scales: Annotated[Scales, Field(min_length=1)] = (1.0,)
    """Image scales. The predicted probabilities are averaged over them."""
    flip: bool = False
    """Average the prediction with that of the mirrored image, at each scale."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass."""
    absent_classes: Literal["skip", "zero", "nan"] = "skip"
    """Classes in neither ground truth nor predictions: skip (not in the means), zero (count as 0), nan (means nan)."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Weight of recall relative to precision in the F-score."""
    calibration: bool = False
    """Measure the calibration of the model as well."""
    boundary: BandWidths = ()
    """Widths in px for which boundary IoU is computed."""
    trimap: BandWidths = ()
    """Widths in px of the bands around contours in which IoU is computed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        crop, stride = self.crop, self.stride
        if crop is not None and crop % CROP_MULTIPLE:
            raise invalid_setting("eval.crop", crop, f"a multiple of {CROP_MULTIPLE}")
        if stride is not None and stride % STRIDE_MULTIPLE:
            raise invalid_setting("eval.stride", stride, f"a multiple of {STRIDE_MULTIPLE}")
        return self

    def validate_windows(self, crop: int | None) -> None:
        """Checks that sliding windows cover all pixels and that their sides are multiples of 32.

        Args:
            crop: side of a window in px if `crop` is not set; None if it is not known yet.

        Raises:
            ValueError: the windows leave gaps, or `size_multiple` is not a multiple of 32.
        """
        side = self.crop or crop
        if self.mode == "slide" and self.stride is not None and side is not None and self.stride > side:
            raise invalid_setting(
                "eval.stride", self.stride, f"at most the window size {side}, so that the windows cover all pixels"
            )
        if self.mode == "slide" and self.size_multiple % CROP_MULTIPLE:
            raise invalid_setting(
                "eval.size_multiple", self.size_multiple, f"a multiple of {CROP_MULTIPLE} in mode slide"
            )
