"""Decoding, encoding and resizing of images and masks."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8] | NDArray[np.uint16]

# Only the grey variants are listed: IMREAD_COLOR_RGB determines the number of channels.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
MODES_16BIT = {"I;16", "I;16L", "I;16B"}
"""Pillow modes with 16 bits per pixel."""


def decode_image(encoded: bytes, reduction: int = 1) -> Pixels:
    """Decodes a stored image to (H, W, 3) uint8 RGB; a grey image is repeated on three channels.

    Args:
        encoded: JPEG, PNG or WebP bytes.
        reduction: 1, 2, 4 or 8. A JPEG is decoded at this fraction of its size, (ceil(H / reduction), ...), and each
            pixel is the mean of the source pixels it covers. Other formats are always decoded at full size.

    Raises:
        DataError: the bytes are not an image.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if is_jpeg(encoded):
        flags |= _REDUCED[reduction]
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        if is_out_of_memory(error):
            raise
        pixels = None
    if pixels is None:
        raise DataError(f"{len(encoded)} bytes of an image column are not an image; convert the dataset again.")
    return np.asarray(pixels, np.uint8)


def is_jpeg(encoded: bytes) -> bool:
    """Returns `True` if the bytes start with the JPEG signature."""
    return encoded[:2] == b"\xff\xd8"


def decode_mask(encoded: bytes) -> Mask:
    """Decodes a stored mask to (H, W) class ids, uint8 or uint16, including the ignore id.

    Raises:
        DataError: the bytes are not a one-channel PNG with 8 or 16 bits.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=("PNG",))
        if image.mode in {"L", "I;16"}:
            return mask_array(image)
        mode = image.mode
    except Exception as error:  # Pillow's readers raise arbitrary exceptions on damaged bytes.
        if is_out_of_memory(error):
            raise
        raise DataError(f"{len(encoded)} bytes of a mask column are not a mask; convert the dataset again.") from error
    raise DataError(f"a mask column contains a {mode} image; expected one channel; convert the dataset again.")


def encode_mask(mask: Mask) -> bytes:
    """Encodes (H, W) uint8 or uint16 class ids as the bytes of a one-channel PNG.

    PNG filtering is disabled. Class ids have no gradients, so filtering does not reduce the file size, and decoding
    without it takes half the time.
    """
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE])
    return encoded.tobytes()


def require_known_ids(mask: Mask, num_classes: int, ignore_id: int) -> None:
    """Checks that every id (H, W) of a mask is a class or the ignore id.

    Raises:
        DataError: the mask contains another id.
    """
    foreign = mask[(mask >= num_classes) & (mask != ignore_id)]
    if foreign.size:
        raise DataError(
            f"the mask contains the ids {np.unique(foreign)[:5].tolist()} in {foreign.size} pixels; expected "
            f"0..{num_classes - 1}, or {ignore_id} for ignored pixels; convert the dataset again with the correct "
            "classes, or correct the fill_mask of data.augment."
        )


def mask_array(image: Image.Image) -> Mask:
    """Converts a one-channel image to an (H, W) array of ids without rescaling."""
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode in MODES_16BIT else pixels.astype(np.uint8)


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


MAX_ASPECT_RATIO = 4
"""Maximum length of the long side relative to `data.short_side`; the published recipe resizes to (2048, 512)."""


def resize_scale(height: int, width: int, short_side: int | None) -> float:
    """Returns the factor by which an image is resized before its random scaling, and at evaluation.

    The short side gets the length `short_side`, but the long side at most `MAX_ASPECT_RATIO` times this length. This
    limits the size of long and narrow images, whose short side is then shorter. `None` keeps the size.
    """
    if short_side is None:
        return 1.0
    return min(short_side / min(height, width), MAX_ASPECT_RATIO * short_side / max(height, width))


def scale_to_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) scaled by `resize_scale`, rounded, each at least 1."""
    scale = resize_scale(height, width, short_side)
    return max(1, round(height * scale)), max(1, round(width * scale))
