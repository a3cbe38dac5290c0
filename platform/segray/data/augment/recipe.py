"""SegFormer's published recipe: random scale, varied random crop, horizontal flip and photometric distortion."""

from random import Random

import cv2
import numpy as np

from segray.config import DataConfig
from segray.data.augment.colour import apply_distortion, sample_distortion
from segray.data.augment.crop import CropRule, crop_encoded, crop_mask, sample_window
from segray.data.images import Mask, Pixels, decode_mask


class SegFormerRecipe:
    """Makes a training crop, (crop, crop, 3) and (crop, crop), from an encoded image, an encoded mask and a seed.

    All random choices depend only on the seed, so the crop of a row does not depend on the rank, thread or node that
    makes it. The mask is decoded first, because it determines the window, and the window determines the size at which
    the image is decoded.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._flip_prob, self._photometric = config.flip_prob, config.photometric
        self._rule = crop_rule_from_config(config, ignore_id)

    def __call__(self, image: bytes, mask: bytes, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of the row; the image is uint8 RGB.

        Raises:
            DataError: the bytes are not an image or a mask, or the two differ in size.
        """
        random = Random(seed)
        ids = decode_mask(mask)
        window = sample_window(self._rule, ids, random)
        pixels, ids = crop_encoded(self._rule, window, image, ids), crop_mask(self._rule, window, ids)
        if random.random() < self._flip_prob:
            pixels, ids = np.asarray(cv2.flip(pixels, 1), np.uint8), cv2.flip(ids, 1)
        if self._photometric:
            pixels = apply_distortion(pixels, sample_distortion(random))
        return pixels, ids


def crop_rule_from_config(config: DataConfig, ignore_id: int) -> CropRule:
    """Builds the crop rule from the settings."""
    return CropRule(
        crop=config.crop,
        scale=(config.scale_min, config.scale_max),
        short_side=config.short_side,
        cat_max_ratio=config.cat_max_ratio,
        class_crop_prob=config.class_crop_prob,
        ignore_id=ignore_id,
    )
