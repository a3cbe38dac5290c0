"""SegFormer's published recipe: random scale, varied random crop, horizontal flip, photometric distortion."""

from random import Random

import cv2
import numpy as np

from segray.config import DataConfig
from segray.data.augment.colour import apply_distortion, sample_distortion
from segray.data.augment.crop import CropRule, crop_encoded, crop_mask, sample_window
from segray.data.images import Mask, Pixels, decode_mask


class SegFormerRecipe:
    """Makes a training crop of a row: encoded image, encoded mask and seed to (crop, crop, 3) and (crop, crop).

    The seed alone decides every draw, so a row's crop does not depend on the rank, thread or node that makes it.
    The mask is decoded first: it decides the window, and the window decides how much of the image is decoded.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._flip, self._photometric = config.flip, config.photometric
        self._rule = crop_rule_from_config(config, ignore_id)

    def __call__(self, image: bytes, mask: bytes, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of the row, image uint8 RGB.

        Raises:
            DataError: the bytes are no image or no mask, or the two differ in size.
        """
        random = Random(seed)
        ids = decode_mask(mask)
        window = sample_window(self._rule, ids, random)
        pixels, ids = crop_encoded(self._rule, window, image, ids), crop_mask(self._rule, window, ids)
        if random.random() < self._flip:
            pixels, ids = np.asarray(cv2.flip(pixels, 1), np.uint8), cv2.flip(ids, 1)
        if self._photometric:
            pixels = apply_distortion(pixels, sample_distortion(random))
        return pixels, ids


def crop_rule_from_config(config: DataConfig, ignore_id: int) -> CropRule:
    """Returns the rule of the settings."""
    return CropRule(
        crop=config.crop,
        scale=(config.scale_min, config.scale_max),
        short_side=config.short_side,
        cat_max_ratio=config.cat_max_ratio,
        class_crops=config.class_crops,
        ignore_id=ignore_id,
    )
