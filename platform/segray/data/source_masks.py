"""Decoding of source masks, and their alignment with upright images."""

import numpy as np

from segray.core.errors import DataError
from segray.data.images import MODES_16BIT, Mask, Pixels, mask_array
from segray.data.normalize import MAX_PIXELS, UPRIGHT, NormalizedImage, open_image, png_depth

MAX_RASTER_WORK = 2**31
"""Maximum work for the shapes of one mask, in filled pixels: a few seconds. It suffices for 6,990 shapes that each
cover an image of 640x480, or for 16 shapes that each cover the largest image."""
OUTLINE_WORK = 64
"""Work for one pixel of an outline, in filled pixels."""

_MASK_MODES = {"1", "L", "P", *MODES_16BIT}


def decode_source_mask(encoded: bytes | Mask, name: str, max_pixels: int = MAX_PIXELS) -> Mask:
    """Decodes a one-channel source mask to (H, W) ids, uint8 or uint16; a palette image yields its indices.

    Args:
        encoded: bytes of the file, or an array of ids, which is returned unchanged.
        name: name of the mask for error messages.
        max_pixels: maximum number of pixels; a larger mask is rejected without decoding.

    Raises:
        DataError: the file is not an image, is truncated, is too large, or has several channels.
    """
    if not isinstance(encoded, bytes):
        return encoded
    with open_image(encoded, name, max_pixels) as image:
        image.load()
    if image.mode not in _MASK_MODES:
        raise DataError(
            f"{name} is a mask with {len(image.getbands())} channels ({image.mode}); expected one channel "
            "of class ids (8 or 16 bits, or palette); save the class id of each pixel instead of its colour."
        )
    ids = mask_array(image)
    depth = png_depth(encoded, image)
    # Pillow scales 2-bit and 4-bit grey to 0..255; the division restores the original ids.
    return ids // np.uint8(255 // (2**depth - 1)) if image.mode == "L" and depth in {2, 4} else ids


def decode_rgb(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a colour-coded source mask to (H, W, 3) uint8 RGB; a palette image yields its colours.

    Raises:
        DataError: the file is not an image, is truncated or is too large.
    """
    with open_image(encoded, name, max_pixels) as image:
        image.load()
    return np.asarray(image.convert("RGB"))


def align_mask(mask: Mask, image: NormalizedImage, image_name: str, mask_name: str) -> Mask:
    """Returns the mask at the size of its upright image.

    The mask is rotated like the image if its size shows that it is not upright yet.

    Raises:
        DataError: the sizes differ, or the image was rotated and the size of the mask does not show whether the mask
            was.
    """
    size = (image.height, image.width)
    # Orientations 5..8 swap height and width. Orientations 2..4 keep the size, so the size of the mask is ambiguous.
    swaps_sides = image.orientation > 4 and image.height != image.width
    if image.orientation != UPRIGHT and not swaps_sides and mask.shape == size:
        raise DataError(
            f"{image_name} has EXIF orientation {image.orientation}, and the size of {mask_name} does not show "
            "whether the mask is rotated too; save the image upright, without the orientation tag."
        )
    if swaps_sides and mask.shape == size[::-1]:
        return _orient_mask(mask, image.orientation)
    if mask.shape != size:
        raise DataError(
            f"{mask_name} is {mask.shape[1]}x{mask.shape[0]} but {image_name} is {size[1]}x{size[0]}; "
            "expected equal sizes."
        )
    return mask


def _orient_mask(mask: Mask, orientation: int) -> Mask:
    rotated = {
        5: lambda ids: ids.T,
        6: lambda ids: np.rot90(ids, -1),
        7: lambda ids: np.rot90(ids, 2).T,
        8: lambda ids: np.rot90(ids, 1),
    }[orientation](mask)
    return np.ascontiguousarray(rotated)


def require_mask_size(height: int, width: int, name: str) -> None:
    """Checks the size of a mask before it is rasterized.

    Raises:
        DataError: a side is not positive, or the mask is larger than any image may be.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(f"{name} has the size {width}x{height}; expected 1 to {MAX_PIXELS} pixels")


class RasterBudget:
    """Limit of the work for the shapes of one mask, which a small file can make arbitrarily large."""

    def __init__(self) -> None:
        self._left = float(MAX_RASTER_WORK)

    def spend(self, filled: float, outline: float = 0) -> None:
        """Subtracts the work for a shape.

        Args:
            filled: number of pixels that the shape fills.
            outline: length of the outline of the shape in pixels.

        Raises:
            ValueError: the shapes of the mask take too much work.
        """
        self._left -= filled + OUTLINE_WORK * outline
        if self._left < 0:
            raise ValueError(f"shapes that fill more than {MAX_RASTER_WORK} pixels in total; remove repeated shapes")
