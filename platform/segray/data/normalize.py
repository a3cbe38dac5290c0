"""Images and masks as people have them: checked, and made what a dataset stores, once, at conversion."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segray.core.errors import DataError
from segray.data.images import MODES_16BIT, Mask, Pixels, mask_array

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**27
PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens no larger image, whatever is asked of it."""
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
"""What makes an image of each EXIF orientation upright."""

_KEPT_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
_KEPT_MODES = {"RGB", "L"}
_MASK_MODES = {"1", "L", "P", *MODES_16BIT}


@dataclass(frozen=True)
class NormalizedImage:
    """A source image as it is stored.

    Attributes:
        encoded: JPEG, PNG or WebP bytes of an 8-bit RGB or grey image without rotation.
        height, width: pixels, upright.
        orientation: the EXIF orientation (1..8) that the source had; 1 is upright.
        reason: why the source was re-encoded as PNG; empty where its own bytes were kept.
    """

    encoded: bytes
    height: int
    width: int
    orientation: int
    reason: str


def normalize_image(encoded: bytes, name: str, most_pixels: int = MAX_PIXELS) -> NormalizedImage:
    """Returns a source image as it is to be stored: its own bytes where they serve, else an RGB PNG.

    Args:
        encoded: the file's bytes.
        name: for messages.
        most_pixels: a larger image is not decoded, and refused.

    Raises:
        DataError: the file is no image, is cut off, is too large, or has a pixel type without an 8-bit meaning.
    """
    with _opened(encoded, name, most_pixels) as image:
        orientation = _orientation(image)
        reason = _reason(image, encoded, orientation)
        height, width = image.height, image.width
        if not reason and image.format == "JPEG":
            image.draft("L", (1, 1))  # shows whether it is whole as well, in half the time
        image.load()
    if not reason:
        return NormalizedImage(encoded, height, width, UPRIGHT, "")
    if orientation != UPRIGHT and image.format != "TIFF":  # Pillow has turned a TIFF while it loaded
        image = image.transpose(EXIF_TRANSPOSES[orientation])
    upright = _eight_bit(image, name)
    return NormalizedImage(_png(upright), upright.height, upright.width, orientation, reason)


def decode_source_mask(encoded: bytes | Mask, name: str, most_pixels: int = MAX_PIXELS) -> Mask:
    """Returns the (H, W) ids of a one-channel source mask, uint8 or uint16; a palette's indices, not its colours.

    Args:
        encoded: the file's bytes; or the ids, which are returned as they are.
        name: for messages.
        most_pixels: a larger mask is not decoded, and refused.

    Raises:
        DataError: the file is no image, is cut off, is too large, or has several channels.
    """
    if not isinstance(encoded, bytes):
        return encoded
    with _opened(encoded, name, most_pixels) as image:
        image.load()
    if image.mode not in _MASK_MODES:
        raise DataError(
            f"{name} is a mask with {len(image.getbands())} channels ({image.mode}); expected one channel "
            "of class ids (8 or 16 bits, or palette); save each pixel's class id instead of its colour."
        )
    ids = mask_array(image)
    depth = _png_depth(encoded, image)
    # Pillow stretches grey of 2 and 4 bits over 0..255; the ids are the numbers before that.
    return ids // np.uint8(255 // (2**depth - 1)) if image.mode == "L" and depth in {2, 4} else ids


def align_mask(mask: Mask, image: NormalizedImage, image_name: str, mask_name: str) -> Mask:
    """Returns the mask with the size of its upright image, rotated with it where its size shows the need.

    Raises:
        DataError: the sizes differ, or the image was rotated and the mask's size does not tell whether it was.
    """
    size = (image.height, image.width)
    # Orientations 5..8 exchange height and width; 2..4 keep the size, so it tells nothing about the mask.
    turned = image.orientation > 4 and image.height != image.width
    if image.orientation != UPRIGHT and not turned and mask.shape == size:
        raise DataError(
            f"{image_name} has EXIF orientation {image.orientation}, and the size of {mask_name} does not tell "
            "whether the mask is rotated too; save the image upright, without the orientation tag."
        )
    if turned and mask.shape == size[::-1]:
        return _oriented(mask, image.orientation)
    if mask.shape != size:
        raise DataError(
            f"{mask_name} is {mask.shape[1]}x{mask.shape[0]} but {image_name} is {size[1]}x{size[0]}; "
            "expected equal sizes."
        )
    return mask


def _oriented(mask: Mask, orientation: int) -> Mask:
    rotated = {
        5: lambda ids: ids.T,
        6: lambda ids: np.rot90(ids, -1),
        7: lambda ids: np.rot90(ids, 2).T,
        8: lambda ids: np.rot90(ids, 1),
    }[orientation](mask)
    return np.ascontiguousarray(rotated)


def require_mask_size(height: int, width: int, name: str) -> None:
    """Refuses a mask that is to be drawn larger than any image may be.

    Raises:
        DataError: it is, or its size is none.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(f"{name} is said to be {width}x{height}; expected 1 to {MAX_PIXELS} pixels")


def decode_rgb(encoded: bytes, name: str, most_pixels: int = MAX_PIXELS) -> Pixels:
    """Returns the (H, W, 3) uint8 pixels of a source mask whose colours mean something; a palette gives its colours.

    Raises:
        DataError: the file is no image, is cut off or is too large.
    """
    with _opened(encoded, name, most_pixels) as image:
        image.load()
    return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(encoded: bytes, name: str, most_pixels: int) -> Iterator[Image.Image]:
    """Yields an image whose pixels are still to be loaded; what fails until then is a DataError.

    Raises:
        DataError: it is no image, or larger than it may be.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own, lower limit only warns; ours is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded))
        if image.width * image.height > most_pixels:
            raise DataError(_too_large(name, str(image.width * image.height), most_pixels))
        yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, f"more than {PILLOW_MAX_PIXELS}", most_pixels)) from error
    except UnidentifiedImageError as error:  # its own message names an object in memory
        said = f"{len(encoded)} bytes of no known format"
        raise DataError(f"{name} cannot be read as an image ({said}); replace or remove it.") from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes.
        raise DataError(f"{name} cannot be read as an image ({error}); replace or remove it.") from error


def _too_large(name: str, pixels: str, most_pixels: int) -> str:
    return f"{name} has {pixels} pixels; expected at most {most_pixels}; cut it into tiles."


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; to be asked before loading: Pillow turns a TIFF upright then, and forgets it."""
    found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return found if found in range(1, 9) else UPRIGHT


def _reason(image: Image.Image, encoded: bytes, orientation: int) -> str:
    """Returns why an image cannot be stored as it is, or nothing."""
    depth = _png_depth(encoded, image)
    checks = {
        f"EXIF orientation {orientation}": orientation != UPRIGHT,
        f"format {image.format}": image.format not in _KEPT_FORMATS,
        "alpha": "A" in image.getbands() or "transparency" in image.info,
        f"{depth} bits a channel": depth != 8,
        "several frames": image.format != "MPO" and getattr(image, "n_frames", 1) > 1,
        f"pixels of type {image.mode}": image.mode not in _KEPT_MODES,
    }
    return ", ".join(reason for reason, applies in checks.items() if applies)


def _png_depth(encoded: bytes, image: Image.Image) -> int:
    """Returns the bits a channel; Pillow does not tell, but they stand at byte 24 of every PNG."""
    if image.format == "PNG":
        return encoded[24]
    return 16 if image.mode in MODES_16BIT else 8


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Returns the image as 8-bit RGB or grey; alpha is dropped, of 16 bits the upper 8 stay."""
    if image.mode in MODES_16BIT:
        return Image.fromarray((mask_array(image) >> 8).astype(np.uint8))
    try:
        if image.mode in {"F", "I"}:
            raise ValueError("their range is not known")
        return image if image.mode in _KEPT_MODES else image.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"{name} has pixels of type {image.mode} ({error}); expected 8 or 16 bits a channel, grey or RGB; "
            "convert it."
        ) from error


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # A copy of the pixels alone: no EXIF, colour profile or transparency comes along.
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
