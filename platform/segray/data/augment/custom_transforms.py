"""Albumentations transforms that segray provides: the parts of the published recipe, and resizing to a multiple."""

from typing import Any

import albumentations as A
import numpy as np

from segray.data.augment.colour import Distortion, apply_distortion, sample_distortion
from segray.data.augment.crop import CropRule, Window, crop_image, crop_mask, sample_window
from segray.data.images import Mask, Pixels, resize_image, resize_mask


class ScaledCrop(A.DualTransform):  # type: ignore[misc]
    """Random scale and crop of the recipe, as an albumentations transform configured by the `data` settings."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)
        # The pipeline resizes to the short side before the first transform.
        self.rule = CropRule(**{**vars(rule), "short_side": None})

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Samples the crop window."""
        return {"window": sample_window(self.rule, data["mask"], self.py_random)}

    def apply(self, img: Pixels, window: Window, **_: Any) -> Pixels:
        """Returns the crop of an image."""
        if img.dtype != np.uint8:
            raise ValueError(f"ScaledCrop got a {img.dtype} image; expected uint8, because the model normalizes")
        return crop_image(self.rule, window, img)

    def apply_to_mask(self, mask: Mask, window: Window, **_: Any) -> Mask:
        """Returns the crop of a mask."""
        return crop_mask(self.rule, window, mask)


class PhotometricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Photometric distortion of the recipe, as an albumentations transform."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Samples the distortion."""
        return {"distortion": sample_distortion(self.py_random)}

    def apply(self, img: Pixels, distortion: Distortion, **_: Any) -> Pixels:
        """Returns the distorted image."""
        return apply_distortion(img, distortion)


class ResizeToMultiple(A.DualTransform):  # type: ignore[misc]
    """Resizes images and masks so that both sides are rounded up to a multiple of `multiple`."""

    def __init__(self, rule: CropRule, multiple: int = 32, p: float = 1.0) -> None:
        super().__init__(p=p)
        if multiple < 1:
            raise ValueError(f"multiple is {multiple}; expected at least 1")
        self.multiple = multiple

    def _size(self, pixels: Any) -> tuple[int, int]:
        height, width = (-(-side // self.multiple) * self.multiple for side in pixels.shape[:2])
        return height, width

    def apply(self, img: Pixels, **_: Any) -> Pixels:
        """Returns the resized image."""
        return resize_image(img, *self._size(img))

    def apply_to_mask(self, mask: Mask, **_: Any) -> Mask:
        """Returns the resized mask."""
        return resize_mask(mask, *self._size(mask))


CUSTOM_TRANSFORMS: dict[str, type] = {
    transform.__name__: transform for transform in (ScaledCrop, PhotometricDistortion, ResizeToMultiple)
}
"""Transforms by name; each takes the crop rule of the settings as `rule`, which a configuration cannot set."""
