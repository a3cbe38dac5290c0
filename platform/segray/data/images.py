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
MAX_STORED_PIXELS = 178_956_970
"""Largest image, in pixels, that Pillow opens, and therefore the largest that a conversion stores."""
_START_OF_FRAME = {bytes((marker,)) for marker in set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}}
MODES_16BIT = {"I;16", "I;16L", "I;16B"}
"""Pillow modes with 16 bits per pixel."""


def decode_image(encoded: bytes, reduction: int = 1) -> Pixels:
    """Decodes a stored image to (H, W, 3) uint8 RGB; a grey image is repeated on three channels.

    Args:
        encoded: JPEG, PNG or WebP bytes.
        reduction: 1, 2, 4 or 8. A JPEG is decoded at this fraction of its size, (ceil(H / reduction), ...), and each
            pixel is the mean of the source pixels it covers. Other formats are always decoded at full size.

    Raises:
        DataError: the bytes are not an image, or the image has more than MAX_STORED_PIXELS pixels.
    """
    num_pixels = count_pixels(encoded)
    if num_pixels > MAX_STORED_PIXELS:  # OpenCV's own limit is 2**30, which takes 3 GiB
        raise DataError(
            f"an image column contains an image of {num_pixels} pixels; expected at most {MAX_STORED_PIXELS}."
        )
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


def count_pixels(encoded: bytes) -> int:
    """Returns the number of pixels in the header of a JPEG, PNG, WebP or BMP image, or 0 if there is no such header."""
    if is_jpeg(encoded):
        return _count_jpeg_pixels(encoded)
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(encoded[16:20], "big") * int.from_bytes(encoded[20:24], "big")
    if encoded[:2] == b"BM":
        width, height = (int.from_bytes(encoded[start : start + 4], "little", signed=True) for start in (18, 22))
        return abs(width * height)
    return _count_webp_pixels(encoded)


def _count_webp_pixels(encoded: bytes) -> int:
    if encoded[8:16] == b"WEBPVP8X":
        return (1 + int.from_bytes(encoded[24:27], "little")) * (1 + int.from_bytes(encoded[27:30], "little"))
    if encoded[8:16] == b"WEBPVP8L":
        sides = int.from_bytes(encoded[21:25], "little")
        return (1 + (sides & 0x3FFF)) * (1 + (sides >> 14 & 0x3FFF))
    if encoded[8:16] == b"WEBPVP8 ":
        width, height = (int.from_bytes(encoded[start : start + 2], "little") & 0x3FFF for start in (26, 28))
        return width * height
    return 0


def _count_jpeg_pixels(encoded: bytes) -> int:
    position = 2
    while encoded[position : position + 1] == b"\xff":
        marker = encoded[position + 1 : position + 2]
        if marker == b"\xff":  # a fill byte
            position += 1
        elif marker in _START_OF_FRAME:
            height, width = (encoded[position + start : position + start + 2] for start in (5, 7))
            return int.from_bytes(height, "big") * int.from_bytes(width, "big")
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return 0


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
