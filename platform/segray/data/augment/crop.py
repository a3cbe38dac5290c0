"""Random scale and random crop, combined into one window of the source image.

Only the pixels of the window are resized. A JPEG that is scaled to half its size or less is decoded at reduced size.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segray.core.errors import DataError
from segray.data.images import Mask, Pixels, decode_image, is_jpeg, resize_image, resize_mask, resize_scale

PAD_COLOUR = (124, 116, 104)
"""Mean RGB colour of ImageNet. The published recipe pads with 0 after normalization, which equals this colour."""

CROP_TRIES = 10
RATIO_GRID = 128  # class fractions of a window are counted on a grid of about this many points per side
CLASS_GRID = 512  # pixels of a class are searched on a grid of about this many points per side
REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True)
class CropRule:
    """Parameters for sampling crop windows.

    Attributes:
        crop: side of the crop in px.
        scale: minimum and maximum of the random scale.
        short_side: length of the short side in px to which images are resized before scaling, see
            `images.resize_scale`; `None` keeps the image size.
        cat_max_ratio: maximum fraction of one class in a window. A window that exceeds it is resampled, up to ten
            windows in total.
        class_crop_prob: probability that a window is placed around a pixel of a class sampled from the classes in the
            image.
        ignore_id: mask value that is not counted and that fills the padding.
    """

    crop: int
    scale: tuple[float, float]
    short_side: int | None
    cat_max_ratio: float
    class_crop_prob: float
    ignore_id: int


@dataclass(frozen=True)
class Window:
    """A window of the source image and its size in the crop, all in px.

    Attributes:
        top, left, height, width: position and size in the source image.
        to_height, to_width: size in the crop, at most the side of the crop. The rest is padded at the bottom and on the
            right.
        reduction: decoding reduction, 1, 2, 4 or 8. The window shrinks by at least this factor, and its borders are
            multiples of it.
    """

    top: int
    left: int
    height: int
    width: int
    to_height: int
    to_width: int
    reduction: int


def sample_window(rule: CropRule, mask: Mask, random: Random) -> Window:
    """Samples the window of an image from its mask (H, W)."""
    height, width = mask.shape
    scale = random.uniform(*rule.scale) * resize_scale(height, width, rule.short_side)
    side = max(1, round(rule.crop / scale))
    step = next((step for step in REDUCTIONS if side >= step * rule.crop and min(height, width) >= step), 1)
    side -= side % step
    window_size = [min(side, length - length % step) for length in (height, width)]
    # A side that fills the crop is resized to the crop size; a shorter side keeps the sampled scale.
    target_size = [rule.crop if length == side else max(1, round(length * rule.crop / side)) for length in window_size]
    top, left = _sample_position(rule, mask, window_size, step, random)
    return Window(top, left, window_size[0], window_size[1], target_size[0], target_size[1], step)


def _sample_position(rule: CropRule, mask: Mask, size: list[int], step: int, random: Random) -> tuple[int, int]:
    classes = _present_classes(mask, rule.ignore_id) if random.random() < rule.class_crop_prob else []
    for _ in range(CROP_TRIES):
        pixel = _sample_class_pixel(mask, classes, random) if classes else (None, None)
        top, left = (
            _sample_start(length, window_length, step, coordinate, random)
            for length, window_length, coordinate in zip(mask.shape, size, pixel, strict=True)
        )
        if rule.cat_max_ratio >= 1 or _is_varied(mask[top : top + size[0], left : left + size[1]], rule):
            break
    return top, left


def _sample_start(length: int, window_length: int, step: int, pixel: int | None, random: Random) -> int:
    """Samples the start of a window along one side, in multiples of `step`; the window contains `pixel` if given."""
    first, last = 0, (length - window_length) // step
    if pixel is not None:
        first, last = max(0, -(-(pixel - window_length + 1) // step)), min(last, pixel // step)
    # No window contains a pixel after the last whole step.
    return random.randint(min(first, last), last) * step


def _subsample(mask: Mask) -> tuple[Mask, int]:
    """Returns every n-th pixel of a mask, and n; in large images, objects smaller than n px may be missed."""
    step = max(1, min(mask.shape) // CLASS_GRID)
    subsampled: Any = np.ascontiguousarray(mask[::step, ::step])
    return subsampled, step


def _present_classes(mask: Mask, ignore_id: int) -> list[int]:
    counts = np.bincount(_subsample(mask)[0].reshape(-1), minlength=ignore_id)[:ignore_id]
    classes: list[int] = np.flatnonzero(counts).tolist()
    return classes


def _sample_class_pixel(mask: Mask, classes: list[int], random: Random) -> tuple[int, int]:
    """Returns (y, x) of a random pixel of a randomly chosen class."""
    subsampled, step = _subsample(mask)
    pixels = np.flatnonzero(subsampled.reshape(-1) == classes[random.randrange(len(classes))])
    y, x = divmod(int(pixels[random.randrange(len(pixels))]), subsampled.shape[1])
    return y * step, x * step


def _is_varied(window: Mask, rule: CropRule) -> bool:
    step = max(1, min(window.shape) // RATIO_GRID)
    counts = np.bincount(np.ascontiguousarray(window[::step, ::step]).reshape(-1))[: rule.ignore_id]
    return bool(counts.max(initial=0) < rule.cat_max_ratio * counts.sum())


def crop_encoded(rule: CropRule, window: Window, encoded: bytes, mask: Mask) -> Pixels:
    """Returns the crop (crop, crop, 3) of an encoded image; a JPEG is decoded at the reduced size of the window.

    Raises:
        DataError: the bytes are not an image, or the size of the image differs from its mask.
    """
    reduction = window.reduction if is_jpeg(encoded) else 1
    image = decode_image(encoded, reduction)
    require_same_size(image, mask, reduction)
    return crop_image(rule, window, image, reduction)


def require_same_size(image: Pixels, mask: Mask, reduction: int = 1) -> None:
    """Checks that an image, decoded at 1/`reduction` of its size, has the size of its mask.

    Raises:
        DataError: the sizes differ.
    """
    height, width = (-(-side // reduction) for side in mask.shape)
    if image.shape[:2] != (height, width):
        raise DataError(
            f"the image is {image.shape[1] * reduction}x{image.shape[0] * reduction} and its mask "
            f"{mask.shape[1]}x{mask.shape[0]}; expected equal sizes; convert the dataset again."
        )


def crop_image(rule: CropRule, window: Window, image: Pixels, reduction: int = 1) -> Pixels:
    """Returns the crop (crop, crop, 3) of an image that was decoded at 1/`reduction` of its size."""
    top, left, height, width = (
        length // reduction for length in (window.top, window.left, window.height, window.width)
    )
    resized = resize_image(image[top : top + height, left : left + width], window.to_height, window.to_width)
    return _pad(resized, rule.crop, PAD_COLOUR)


def crop_mask(rule: CropRule, window: Window, mask: Mask) -> Mask:
    """Returns the crop (crop, crop) of a mask, padded with the ignore id."""
    cropped = mask[window.top : window.top + window.height, window.left : window.left + window.width]
    return _pad(resize_mask(cropped, window.to_height, window.to_width), rule.crop, (rule.ignore_id,))


def _pad(pixels: NDArray[Any], crop: int, fill: tuple[int, ...]) -> NDArray[Any]:
    bottom, right = crop - pixels.shape[0], crop - pixels.shape[1]
    if not (bottom or right):
        return pixels
    return np.asarray(cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill))
