"""Images and masks as a dataset stores them: decoded for training, masks encoded."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.core.errors import DataError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8] | NDArray[np.uint16]

# OpenCV's flags for reduced reading name grey ones; the flag for colour decides.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
MODES_16BIT = {"I;16", "I;16L", "I;16B"}
"""Pillow's modes of 16 bits."""


def decode_image(encoded: bytes, reduction: int = 1) -> Pixels:
    """Returns the (H, W, 3) uint8 RGB pixels of a stored image; grey is repeated on three channels.

    Args:
        encoded: JPEG, PNG or WebP bytes.
        reduction: 1, 2, 4 or 8; a JPEG is decoded at this fraction of its size, (ceil(H / reduction), ...), each
            pixel the mean of those it stands for. Other formats cannot, and come whole.

    Raises:
        DataError: the bytes are no image.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if is_jpeg(encoded):
        flags |= _REDUCED[reduction]
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{len(encoded)} bytes of an image column are no image; convert the dataset again.")
    return np.asarray(pixels, np.uint8)


def is_jpeg(encoded: bytes) -> bool:
    """Returns whether the bytes are a JPEG's."""
    return encoded[:2] == b"\xff\xd8"


def decode_mask(encoded: bytes) -> Mask:
    """Returns the (H, W) class ids of a stored mask, uint8 or uint16, ignore id included.

    Raises:
        DataError: the bytes are no one-channel PNG of 8 or 16 bits.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode in {"L", "I;16"}:
            return mask_array(image)
        found = f"a {image.mode} image"
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes.
        raise DataError(f"{len(encoded)} bytes of a mask column are no mask; convert the dataset again.") from error
    raise DataError(f"a mask column holds {found}; expected one channel; convert the dataset again.")


def encode_mask(mask: Mask) -> bytes:
    """Returns the (H, W) uint8 or uint16 class ids as the bytes of a one-channel PNG.

    Its lines are not filtered: ids are no slopes, the file stays as small, and reading it takes half the time.
    """
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE])
    return encoded.tobytes()


def mask_array(image: Image.Image) -> Mask:
    """Returns the ids (H, W) of a one-channel image, as they are."""
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode in MODES_16BIT else pixels.astype(np.uint8)
