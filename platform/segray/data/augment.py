"""Training crops and evaluation sizes: what happens to decoded pixels before a model sees them.

The recipe is SegFormer's published one: random scale, random crop in which no class takes more than its share,
horizontal flip, photometric distortion. Transforms are albumentations', seeded anew for every row.
"""

import threading
from math import ceil
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from segray.config import DataConfig
from segray.data.images import Mask, Pixels

PAD_COLOUR = (124, 116, 104)
"""Mean RGB colour of ImageNet: what the published recipe pads with, since it pads after normalising."""

CROP_TRIES = 10
BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180 hues


class Augment:
    """Makes a training crop of a row: (image, mask, seed) to (crop, crop, 3) uint8 and (crop, crop).

    The seed alone decides every draw, so a row's crop does not depend on the rank or thread that makes it.
    Safe to call from many threads.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._config = config
        self._ignore_id = ignore_id
        self._of_thread = threading.local()

    def __call__(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        pipeline = self._pipeline()
        pipeline.set_random_seed(seed)
        made = pipeline(image=image, mask=mask)
        return made["image"], made["mask"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Augment, (self._config, self._ignore_id)

    def _pipeline(self) -> A.Compose:
        # A Compose holds the random state of the row at hand, so threads must not share one.
        if not hasattr(self._of_thread, "pipeline"):
            self._of_thread.pipeline = pipeline(self._config, self._ignore_id)
        return self._of_thread.pipeline


def pipeline(config: DataConfig, ignore_id: int) -> A.Compose:
    """Returns the albumentations pipeline of the settings; `ignore_id` fills the mask where it is padded."""
    steps: list[A.BasicTransform] = [
        ScaledCrop(
            config.crop,
            (config.scale_min, config.scale_max),
            config.short_side,
            config.cat_max_ratio,
            ignore_id,
        ),
        A.HorizontalFlip(p=config.flip),
    ]
    if config.photometric:
        steps.append(PhotometricDistortion())
    return A.Compose(steps)


class ScaledCrop(A.DualTransform):  # type: ignore[misc]
    """Random scale and random crop in one: only the pixels of the crop are resized.

    A window of crop / scale source pixels is cut out and resized to the crop. An image smaller than the window
    is taken whole and padded at the right and bottom. A window in which one class has more than
    `cat_max_ratio` of the counted pixels is drawn again, at most ten times.
    """

    def __init__(
        self,
        crop: int,
        scale: tuple[float, float],
        short_side: int | None,
        cat_max_ratio: float,
        ignore_id: int,
    ) -> None:
        super().__init__(p=1.0)
        self.crop, self.scale, self.short_side = crop, scale, short_side
        self.cat_max_ratio, self.ignore_id = cat_max_ratio, ignore_id

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Returns the window (top, left, height, width) in source pixels and its size in the crop."""
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(*self.scale)
        if self.short_side is not None:
            scale *= self.short_side / min(height, width)
        side = max(1, round(self.crop / scale))
        window = min(side, height), min(side, width)
        # The side that fits is resized to the whole crop; a side that does not keeps the drawn scale.
        size = tuple(self.crop if cut == side else max(1, min(self.crop, round(cut * scale))) for cut in window)
        top, left = self._place(data["mask"], window)
        return {"window": (top, left, *window), "size": size}

    def _place(self, mask: Mask, window: tuple[int, int]) -> tuple[int, int]:
        for _ in range(CROP_TRIES):
            top = self.py_random.randint(0, mask.shape[0] - window[0])
            left = self.py_random.randint(0, mask.shape[1] - window[1])
            if self.cat_max_ratio >= 1 or self._is_varied(mask[top : top + window[0], left : left + window[1]]):
                break
        return top, left

    def _is_varied(self, mask: Mask) -> bool:
        counts = np.bincount(np.ascontiguousarray(mask).reshape(-1))
        counts[self.ignore_id :] = 0
        return bool(counts.max(initial=0) < self.cat_max_ratio * counts.sum())

    def apply(self, img: Pixels, window: tuple[int, ...], size: tuple[int, int], **_: Any) -> Pixels:
        """Returns the crop of an image."""
        return self._pad(resize_image(_cut(img, window), *size), PAD_COLOUR)

    def apply_to_mask(self, mask: Mask, window: tuple[int, ...], size: tuple[int, int], **_: Any) -> Mask:
        """Returns the crop of a mask: class ids are never mixed."""
        cut = cv2.resize(_cut(mask, window), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return self._pad(cut, (self.ignore_id,))

    def _pad(self, made: NDArray[Any], fill: tuple[int, ...]) -> NDArray[Any]:
        below, right = self.crop - made.shape[0], self.crop - made.shape[1]
        if not (below or right):
            return made
        return np.asarray(cv2.copyMakeBorder(made, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill))


def _cut(pixels: NDArray[Any], window: tuple[int, ...]) -> NDArray[Any]:
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


class PhotometricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue, each with probability one half, in the published ranges.

    Contrast comes before or after saturation and hue, by a coin. Every step is a table of 256 entries, so
    nothing leaves uint8.
    """

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def get_params(self) -> dict[str, Any]:
        """Returns the tables of the three stages, none where a stage does nothing."""
        random = self.py_random
        levels = np.arange(256, dtype=np.float32)
        delta = random.uniform(-BRIGHTNESS, BRIGHTNESS) if random.random() < 0.5 else 0.0
        contrast = random.uniform(*CONTRAST) if random.random() < 0.5 else 1.0
        contrast_first = random.random() < 0.5
        saturation = random.uniform(*SATURATION) if random.random() < 0.5 else 1.0
        hue = random.randint(-HUE, HUE) if random.random() < 0.5 else 0
        before = np.clip(levels + delta, 0, 255)
        if contrast_first:
            before = before * contrast
        after = levels if contrast_first else levels * contrast
        return {
            "before": _table(before),
            "hsv": _hsv_table(saturation, hue),
            "after": _table(after),
        }

    def apply(
        self,
        img: Pixels,
        before: Pixels | None,
        hsv: Pixels | None,
        after: Pixels | None,
        **_: Any,
    ) -> Pixels:
        """Returns the distorted image."""
        if before is not None:
            img = cv2.LUT(img, before)
        if hsv is not None:
            img = cv2.cvtColor(cv2.LUT(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), hsv), cv2.COLOR_HSV2RGB)
        return img if after is None else cv2.LUT(img, after)


def _table(levels: NDArray[np.float32]) -> Pixels | None:
    table = np.clip(levels, 0, 255).astype(np.uint8)
    return None if np.array_equal(table, np.arange(256)) else table


def _hsv_table(saturation: float, hue: int) -> Pixels | None:
    if saturation == 1.0 and hue == 0:
        return None
    levels = np.arange(256)
    saturations = np.clip(levels * saturation, 0, 255)
    return np.stack([(levels + hue) % 180, saturations, levels], axis=-1).astype(np.uint8)[None]


def resize_image(image: Pixels, height: int, width: int) -> Pixels:
    """Returns the image at another size.

    Bilinear as published; below half the size by area, since bilinear would skip pixels there.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * 2 < image.shape[0] or width * 2 < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def model_size(height: int, width: int, short_side: int | None, align: int) -> tuple[int, int]:
    """Returns the (height, width) an image is evaluated at: its short side set, sides rounded up to `align`."""
    scale = 1.0 if short_side is None else short_side / min(height, width)
    # 1e-6: a side that is a multiple already must not be rounded up by floating point.
    up = [ceil(side * scale / align - 1e-6) * align for side in (height, width)]
    return up[0], up[1]


def fit_to_model(image: Pixels, short_side: int | None, align: int) -> Pixels:
    """Returns the image at the size it is evaluated at."""
    height, width = image.shape[:2]
    return resize_image(image, *model_size(height, width, short_side, align))
