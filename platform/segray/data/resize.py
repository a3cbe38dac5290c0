"""Resizing of images and masks."""

import cv2
import numpy as np

from segray.data.images import Mask, Pixels


def resize_image(image: Pixels, height: int, width: int) -> Pixels:
    """Resizes an image.

    Uses bilinear interpolation, as in the published recipe, and area interpolation below half the size, where bilinear
    interpolation would skip pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * 2 < image.shape[0] or width * 2 < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Resizes a mask with nearest-neighbour interpolation, so that ids are never mixed."""
    if mask.shape == (height, width):
        return mask
    resized: Mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def scale_to_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter side equals `short_side`."""
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
