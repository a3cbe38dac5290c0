"""Checks of source images, and their normalization to the stored form during conversion."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.data.images import MAX_STORED_PIXELS, MODES_16BIT, Pixels, decode_image, mask_array

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats that Pillow may read; its JPEG reader also reads MPO. Without names, it tries the readers of all its formats,
and a small hostile file keeps some of them busy for minutes."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**27
PILLOW_MAX_PIXELS = MAX_STORED_PIXELS
"""Largest image, in pixels, that Pillow opens regardless of its settings."""
UPRIGHT = 1
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpose operation that makes an image of each EXIF orientation upright."""

_KEPT_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
_KEPT_MODES = {"RGB", "L"}


@dataclass(frozen=True)
class NormalizedImage:
    """A source image in its stored form.

    Attributes:
        encoded: JPEG, PNG or WebP bytes of an 8-bit RGB or grey image without rotation.
        height, width: size of the upright image in pixels.
        orientation: EXIF orientation (1..8) of the source; 1 is upright.
        reason: reason why the source was re-encoded as PNG; empty if the original bytes were kept.
    """

    encoded: bytes
    height: int
    width: int
    orientation: int
    reason: str


def normalize_image(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NormalizedImage:
    """Returns a source image in its stored form: the original bytes if they are usable, otherwise an RGB PNG.

    Args:
        encoded: bytes of the file.
        name: name of the image for error messages.
        max_pixels: maximum number of pixels; a larger image is rejected without decoding.

    Raises:
        DataError: the file is not an image, is truncated, is too large, or has a pixel type without an 8-bit
            equivalent.
    """
    with open_image(encoded, name, max_pixels) as image:
        height, width = image.height, image.width
        reason, orientation = _load_image(image, encoded)
    if not reason:
        _require_decodable(encoded, name)
        return NormalizedImage(encoded, height, width, UPRIGHT, "")
    upright = _upright(image, orientation, name)
    return NormalizedImage(_png(upright), upright.height, upright.width, orientation, reason)


def decode_upright(encoded: bytes, name: str, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Pixels:
    """Returns the pixels (H, W, 3) uint8 RGB that `normalize_image` and `decode_image` return together.

    An image that conversion would re-encode is not encoded here.

    Args:
        encoded: bytes of the file.
        name: name of the image for error messages.
        max_pixels: maximum number of pixels; a larger image is rejected without decoding.
        formats: names of the formats in Pillow that are read.

    Raises:
        DataError: as `normalize_image`.
    """
    with open_image(encoded, name, max_pixels, formats) as image:
        reason, orientation = _load_image(image, encoded)
    if not reason:
        return decode_image(encoded)
    return np.array(_upright(image, orientation, name).convert("RGB"))


def _load_image(image: Image.Image, encoded: bytes) -> tuple[str, int]:
    """Loads the pixels, and returns the reason to re-encode the image, or "", and its EXIF orientation.

    Without a reason, a JPEG image is loaded at a reduced size, which only serves to detect truncated files.
    """
    orientation = _orientation(image)
    reason = _reencoding_reason(image, encoded, orientation)
    if not reason and image.format == "JPEG":
        image.draft("L", (1, 1))  # half the time of a full decode
    image.load()
    return reason, orientation


def _upright(image: Image.Image, orientation: int, name: str) -> Image.Image:
    """Returns a loaded image upright, as 8-bit RGB or grey."""
    if orientation != UPRIGHT and image.format != "TIFF":  # Pillow rotates a TIFF upright on load
        image = image.transpose(EXIF_TRANSPOSES[orientation])
    return _eight_bit(image, name)


def _require_decodable(encoded: bytes, name: str) -> None:
    """Checks that training can decode the bytes: its decoder verifies checksums that Pillow ignores.

    Raises:
        DataError: the decoder refuses the bytes.
    """
    try:
        decode_image(encoded, reduction=8)
    except DataError as error:
        raise DataError(f"{name} cannot be read as an image (it is damaged); replace or remove it.") from error


@contextmanager
def open_image(encoded: bytes, name: str, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Yields an opened image whose pixels are not loaded yet, and converts errors of Pillow to DataError.

    Raises:
        DataError: the bytes are not an image, or the image is too large.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own lower limit only warns; `max_pixels` is the limit that is enforced.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=formats)
        if image.width * image.height > max_pixels:
            raise DataError(_too_large(name, str(image.width * image.height), max_pixels))
        yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, f"more than {PILLOW_MAX_PIXELS}", max_pixels)) from error
    except UnidentifiedImageError as error:  # Pillow's message names an object in memory
        raise DataError(
            f"{name} cannot be read as an image (unknown format, {len(encoded)} bytes); replace or remove it."
        ) from error
    except Exception as error:  # Pillow's readers raise arbitrary exceptions on damaged bytes.
        if is_out_of_memory(error):
            raise
        raise DataError(f"{name} cannot be read as an image ({error}); replace or remove it.") from error


def _too_large(name: str, num_pixels: str, max_pixels: int) -> str:
    return f"{name} has {num_pixels} pixels; expected at most {max_pixels}; cut it into tiles."


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation.

    Must be called before the pixels are loaded: Pillow rotates a TIFF on load and removes the orientation.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if orientation in range(1, 9) else UPRIGHT


def _reencoding_reason(image: Image.Image, encoded: bytes, orientation: int) -> str:
    """Returns the reason why an image cannot be stored unchanged, or an empty string."""
    depth = png_depth(encoded, image)
    checks = {
        f"EXIF orientation {orientation}": orientation != UPRIGHT,
        f"format {image.format}": image.format not in _KEPT_FORMATS,
        "alpha": "A" in image.getbands() or "transparency" in image.info,
        f"{depth} bits per channel": depth != 8,
        # n_frames reads all frames of a TIFF, in quadratic time; is_animated only the first.
        "several frames": image.format != "MPO" and getattr(image, "is_animated", False),
        f"pixels of type {image.mode}": image.mode not in _KEPT_MODES,
    }
    return ", ".join(reason for reason, applies in checks.items() if applies)


def png_depth(encoded: bytes, image: Image.Image) -> int:
    """Returns the bits per channel of a PNG, read from byte 24 because Pillow does not expose them."""
    if image.format == "PNG":
        return encoded[24]
    return 16 if image.mode in MODES_16BIT else 8


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Converts the image to 8-bit RGB or grey; alpha is dropped, and of 16 bits the upper 8 are kept."""
    if image.mode in MODES_16BIT:
        return Image.fromarray((mask_array(image) >> 8).astype(np.uint8))
    try:
        if image.mode in {"F", "I"}:
            raise ValueError("unknown value range")
        return image if image.mode in _KEPT_MODES else image.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"{name} has pixels of type {image.mode} ({error}); expected grey or RGB with 8 or 16 bits per channel; "
            "convert it."
        ) from error


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Only the pixels are copied: EXIF data, colour profile and transparency are dropped.
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
