"""Images and masks as bytes: decoded for training, and checked and made upright once at conversion."""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from segray.errors import DataError

MAX_PIXELS = 2**27
UPRIGHT = 1

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8] | NDArray[np.uint16]

# OpenCV's flags for reduced reading name grey ones; the flag for colour decides.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_KEPT_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
_KEPT_MODES = {"RGB", "L"}
_DEEP_GREY = {"I;16", "I;16L", "I;16B"}
_MASK_MODES = {"1", "L", "P", *_DEEP_GREY}


@dataclass(frozen=True)
class UprightImage:
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
            return _ids(image)
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


def upright_image(encoded: bytes, name: str) -> UprightImage:
    """Returns a source image as it is to be stored: its own bytes where they serve, else an RGB PNG.

    Raises:
        DataError: the file is no image, is cut off, is too large, or has a pixel type without an 8-bit meaning.
    """
    image, orientation = _read(encoded, name)
    reason = _reason(image, encoded, orientation)
    if not reason:
        return UprightImage(encoded, image.height, image.width, UPRIGHT, "")
    upright = _eight_bit(ImageOps.exif_transpose(image), name)
    return UprightImage(_png(upright), upright.height, upright.width, orientation, reason)


def source_mask(encoded: bytes, name: str) -> Mask:
    """Returns the (H, W) ids of a one-channel source mask, uint8 or uint16; a palette's indices, not its colours.

    Raises:
        DataError: the file is no image, is cut off, is too large, or has several channels.
    """
    image, _ = _read(encoded, name)
    if image.mode not in _MASK_MODES:
        raise DataError(
            f"{name} is a mask with {len(image.getbands())} channels ({image.mode}); expected one channel "
            "of class ids (8 or 16 bits, or palette); save each pixel's class id instead of its colour."
        )
    ids = _ids(image)
    depth = _png_depth(encoded, image)
    # Pillow stretches grey of 2 and 4 bits over 0..255; the ids are the numbers before that.
    return ids // np.uint8(255 // (2**depth - 1)) if image.mode == "L" and depth in {2, 4} else ids


def aligned_mask(mask: Mask, image: UprightImage, image_name: str, mask_name: str) -> Mask:
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


def _read(encoded: bytes, name: str) -> tuple[Image.Image, int]:
    """Returns the image with its pixels loaded, and its EXIF orientation; the size is checked before loading."""
    try:
        with warnings.catch_warnings():
            # Pillow's own, lower limit only warns; ours is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded))
        pixels = image.width * image.height
        if pixels <= MAX_PIXELS:
            # Before loading, because Pillow turns a TIFF upright while it loads and forgets that it did.
            orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
            image.load()
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes.
        raise DataError(f"{name} cannot be read as an image ({error}); replace or remove it.") from error
    if pixels > MAX_PIXELS:
        raise DataError(f"{name} has {pixels} pixels; expected at most {MAX_PIXELS}; cut it into tiles.")
    return image, orientation if orientation in range(1, 9) else UPRIGHT


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
    return 16 if image.mode in _DEEP_GREY else 8


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Returns the image as 8-bit RGB or grey; alpha is dropped, of 16 bits the upper 8 stay."""
    if image.mode in _DEEP_GREY:
        return Image.fromarray((_ids(image) >> 8).astype(np.uint8))
    try:
        if image.mode in {"F", "I"}:
            raise ValueError("their range is not known")
        return image if image.mode in _KEPT_MODES else image.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"{name} has pixels of type {image.mode} ({error}); expected 8 or 16 bits a channel, grey or RGB; "
            "convert it."
        ) from error


def _ids(image: Image.Image) -> Mask:
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode in _DEEP_GREY else pixels.astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # A copy of the pixels alone: no EXIF, colour profile or transparency comes along.
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
