"""Preprocessing of images: the conversion to model input that validation, evaluation, prediction and serving share."""

from math import ceil

import torch
from torch import Tensor

from segray.core.errors import DataError
from segray.data.images import Pixels, resize_image, resize_scale

MAX_INPUT_PIXELS, MAX_UPSCALE = 2**24, 4
"""Limits of model input: pixels, and pixels relative to the original image. It must not exceed both."""


def model_input_size(height: int, width: int, short_side: int | None, size_multiple: int) -> tuple[int, int]:
    """Returns the (height, width) at which an image is evaluated.

    The image is scaled by `images.resize_scale`, and both sides are rounded up to a multiple of `size_multiple`.
    """
    scale = resize_scale(height, width, short_side)
    # 1e-6 prevents floating-point error from rounding up a side that is already a multiple.
    up = [ceil(side * scale / size_multiple - 1e-6) * size_multiple for side in (height, width)]
    return up[0], up[1]


def preprocess(image: Pixels, short_side: int | None, size_multiple: int) -> Tensor:
    """Converts an image to model input; validation, evaluation, prediction and serving all use this function.

    Colours are not normalized here, because the model normalizes them itself.

    Args:
        image: RGB image, (H, W, 3) uint8.
        short_side: setting `data.short_side`.
        size_multiple: setting `eval.size_multiple`.

    Returns:
        A batch of one image, (1, 3, H', W') uint8, channels-last in memory; see `model_input_size` for its size.
    """
    height, width = model_input_size(image.shape[0], image.shape[1], short_side, size_multiple)
    return torch.from_numpy(resize_image(image, height, width)).permute(2, 0, 1)[None]


def require_input_limits(image: Pixels, short_side: int | None, size_multiple: int) -> None:
    """Checks the limits of model input. Only prediction and serving do so, because anyone may send them an image.

    Raises:
        DataError: `short_side` or `size_multiple` enlarges the image so much that its model input would be too large.
    """
    height, width = model_input_size(image.shape[0], image.shape[1], short_side, size_multiple)
    if height * width > max(MAX_INPUT_PIXELS, MAX_UPSCALE * image.shape[0] * image.shape[1]):
        raise DataError(
            f"the image is {image.shape[1]}x{image.shape[0]}; data.short_side {short_side} and eval.size_multiple "
            f"{size_multiple} enlarge it to {width}x{height}; expected at most {MAX_INPUT_PIXELS} pixels or "
            f"{MAX_UPSCALE} times those of the image; use a larger image."
        )
