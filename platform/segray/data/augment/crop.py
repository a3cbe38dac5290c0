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
from segray.data.images import Mask, Pixels, decode_image, is_jpeg
from segray.data.resize import resize_image, resize_mask

PAD_COLOUR = (124, 116, 104)
"""Mean RGB colour of ImageNet. The published recipe pads with 0 after normalization, which equals this colour."""

CROP_TRIES = 10
GRID = 128  # class shares of a window are counted on a grid of about this many points per side
SEEN = 512  # pixels of a class are searched on a grid of about this many points per side
REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True)
class CropRule:
    """Parameters for sampling crop windows.

    Attributes:
        crop: side of the crop in px.
        scale: minimum and maximum of the random scale.
        short_side: length of the short side in px to which images are resized before scaling; `None` keeps the image
            size.
        cat_max_ratio: maximum share of one class in a window. A window that exceeds it is resampled, up to ten windows
            in total.
        class_crops: share of the windows that are placed around a pixel of a class sampled from the classes in the
            image.
        ignore_id: mask value that is not counted and that fills the padding.
    """

    crop: int
    scale: tuple[float, float]
    short_side: int | None
    cat_max_ratio: float
    class_crops: float
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
    scale = random.uniform(*rule.scale)
    if rule.short_side is not None:
        scale *= rule.short_side / min(height, width)
    side = max(1, round(rule.crop / scale))
    step = next((step for step in REDUCTIONS if side >= step * rule.crop and min(height, width) >= step), 1)
    side -= side % step
    cut = [min(side, length - length % step) for length in (height, width)]
    # A side that fills the crop is resized to the crop size; a shorter side keeps the sampled scale.
    size = [rule.crop if length == side else max(1, round(length * rule.crop / side)) for length in cut]
    top, left = _place(rule, mask, (cut[0], cut[1]), step, random)
    return Window(top, left, cut[0], cut[1], size[0], size[1], step)


def _place(rule: CropRule, mask: Mask, cut: tuple[int, int], step: int, random: Random) -> tuple[int, int]:
    classes = _classes(mask, rule.ignore_id) if random.random() < rule.class_crops else []
    for _ in range(CROP_TRIES):
        pixel = _pixel_of_a_class(mask, classes, random) if classes else None
        top, left = (
            _start(length, part, step, at, random)
            for length, part, at in zip(mask.shape, cut, pixel or (None, None), strict=True)
        )
        if rule.cat_max_ratio >= 1 or _is_varied(mask[top : top + cut[0], left : left + cut[1]], rule):
            break
    return top, left


def _start(length: int, part: int, step: int, pixel: int | None, random: Random) -> int:
    """Samples the start of a window along one side, in multiples of `step`; the window contains `pixel` if given."""
    first, last = 0, (length - part) // step
    if pixel is not None:
        first, last = max(0, -(-(pixel - part + 1) // step)), min(last, pixel // step)
    # No window contains a pixel after the last whole step.
    return random.randint(min(first, last), last) * step


def _seen(mask: Mask) -> tuple[Mask, int]:
    """Returns every n-th pixel of a mask, and n; in large images, objects smaller than n px may be missed."""
    step = max(1, min(mask.shape) // SEEN)
    seen: Any = np.ascontiguousarray(mask[::step, ::step])
    return seen, step


def _classes(mask: Mask, ignore_id: int) -> list[int]:
    counts = np.bincount(_seen(mask)[0].reshape(-1), minlength=ignore_id)[:ignore_id]
    classes: list[int] = np.flatnonzero(counts).tolist()
    return classes


def _pixel_of_a_class(mask: Mask, classes: list[int], random: Random) -> tuple[int, int]:
    """Returns (y, x) of a random pixel of a randomly chosen class."""
    seen, step = _seen(mask)
    pixels = np.flatnonzero(seen.reshape(-1) == classes[random.randrange(len(classes))])
    y, x = divmod(int(pixels[random.randrange(len(pixels))]), seen.shape[1])
    return y * step, x * step


def _is_varied(window: Mask, rule: CropRule) -> bool:
    step = max(1, min(window.shape) // GRID)
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
    made = resize_image(image[top : top + height, left : left + width], window.to_height, window.to_width)
    return _padded(made, rule.crop, PAD_COLOUR)


def crop_mask(rule: CropRule, window: Window, mask: Mask) -> Mask:
    """Returns the crop (crop, crop) of a mask, padded with the ignore id."""
    cut = mask[window.top : window.top + window.height, window.left : window.left + window.width]
    return _padded(resize_mask(cut, window.to_height, window.to_width), rule.crop, (rule.ignore_id,))


def _padded(made: NDArray[Any], crop: int, fill: tuple[int, ...]) -> NDArray[Any]:
    below, right = crop - made.shape[0], crop - made.shape[1]
    if not (below or right):
        return made
    return np.asarray(cv2.copyMakeBorder(made, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill))
