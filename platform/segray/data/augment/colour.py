"""Photometric distortion of the published recipe: brightness, contrast, saturation and hue.

Each step is applied with probability 0.5. Pixels stay uint8, and every step is one pass over the crop.
"""

from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from segray.data.images import Pixels

BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE_DEGREES = 36


@dataclass(frozen=True)
class Distortion:
    """Parameters of the photometric distortion of one crop.

    Attributes:
        brightness: offset of every channel, -32..32.
        contrast: factor of every channel.
        contrast_first: `True` to apply contrast before saturation and hue, `False` to apply it after them.
        saturation: factor of the saturation.
        hue: rotation of the hue in 1/256 of the colour circle.
    """

    brightness: int
    contrast: float
    contrast_first: bool
    saturation: float
    hue: int


def sample_distortion(random: Random) -> Distortion:
    """Samples a distortion from the published ranges.

    Contrast is applied before or after saturation and hue with equal probability.
    """
    return Distortion(
        brightness=random.randint(-BRIGHTNESS, BRIGHTNESS) if random.random() < 0.5 else 0,
        contrast=random.uniform(*CONTRAST) if random.random() < 0.5 else 1.0,
        contrast_first=random.random() < 0.5,
        saturation=random.uniform(*SATURATION) if random.random() < 0.5 else 1.0,
        hue=round(random.uniform(-HUE_DEGREES, HUE_DEGREES) * 256 / 360) if random.random() < 0.5 else 0,
    )


def apply_distortion(image: Pixels, distortion: Distortion) -> Pixels:
    """Applies the distortion to an (H, W, 3) uint8 RGB image; values are clipped to 0..255."""
    image = _adjust_brightness(image, distortion.brightness)
    if distortion.contrast_first:
        image = _adjust_contrast(image, distortion.contrast)
    image = _adjust_saturation_and_hue(image, distortion.saturation, distortion.hue)
    return image if distortion.contrast_first else _adjust_contrast(image, distortion.contrast)


def _adjust_brightness(image: Pixels, brightness: int) -> Pixels:
    if brightness == 0:
        return image
    # The operand is a positive integer, because OpenCV does not stay in uint8 for other values.
    operation = cv2.add if brightness > 0 else cv2.subtract
    return np.asarray(operation(image, (abs(brightness),) * 3 + (0,)), np.uint8)


def _adjust_contrast(image: Pixels, contrast: float) -> Pixels:
    return image if contrast == 1.0 else np.asarray(cv2.convertScaleAbs(image, alpha=contrast), np.uint8)


def _adjust_saturation_and_hue(image: Pixels, saturation: float, hue: int) -> Pixels:
    if saturation == 1.0 and hue == 0:
        return image
    # _FULL uses 256 hues, so that a rotation is a uint8 addition with wrap-around.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    if hue:
        rows = hsv.reshape(len(hsv), -1)  # (H, 3W): one addition over rows is much faster than one per channel
        rows += np.tile(np.array([hue % 256, 0, 0], np.uint8), image.shape[1])
    if saturation != 1.0:
        hsv = cv2.transform(hsv, np.diag([1.0, saturation, 1.0]))
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)
