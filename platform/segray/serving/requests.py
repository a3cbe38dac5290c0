"""Validation of requests: image limits and response options."""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from segray.config import ServeConfig
from segray.core.errors import SegrayError
from segray.core.numbers import MIB

IMAGE_TYPES = {"image/jpeg": ("JPEG", "MPO"), "image/png": ("PNG",), "image/webp": ("WEBP",)}
"""Accepted media types and their Pillow formats. MPO is a JPEG file with a second image, as smartphones write it."""

Output = Literal["mask", "overlay", "json"]
IncludeField = Literal["polygons", "rle", "mask", "colours"]
"""Optional fields of a JSON response. The class shares are always included."""


class RequestError(SegrayError):
    """Error for a request that the server rejects.

    Args:
        reason: message that states the problem and the expected input.
        status: HTTP status code.
    """

    def __init__(self, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.status = status

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, int]]:
        return RequestError, (str(self), self.status)


@dataclass(frozen=True)
class ResponseOptions:
    """Response options of a request.

    Attributes:
        output: type of the response. "mask" is the mask of class ids, "overlay" is the image with the class colours
            drawn over it, "json" is the class shares as JSON.
        include: optional fields of a JSON response.
        opacity: opacity of the colours in an overlay, 0 to 1.
    """

    output: Output = "mask"
    include: frozenset[IncludeField] = frozenset()
    opacity: float = 0.5


def validate_length(length: int, limits: ServeConfig) -> None:
    """Rejects a request body that is too long.

    Args:
        length: number of bytes that were declared or received so far.
        limits: serving configuration.

    Raises:
        RequestError: the body is longer than `serve.max_request_mib` MiB (status 413).
    """
    if length > limits.max_request_mib * MIB:
        raise RequestError(f"the request is larger than the limit of {limits.max_request_mib:g} MiB.", 413)


def validate_image(encoded: bytes, limits: ServeConfig, name: str = "the image") -> None:
    """Rejects data that is not an image of a known format, and images that are too large.

    Only the header of the image is read.

    Raises:
        RequestError: the image is unreadable (status 422), of another format (415) or too large (413).
    """
    image_format, width, height = _read_header(encoded, name)
    if not any(image_format in formats for formats in IMAGE_TYPES.values()):
        raise RequestError(f"{name} has the format {image_format}; expected {', '.join(IMAGE_TYPES)}.", 415)
    if width * height > limits.max_image_pixels:
        raise RequestError(f"{name} is {width}x{height}; expected at most {limits.max_image_pixels} pixels.", 413)


def _read_header(encoded: bytes, name: str) -> tuple[str, int, int]:
    if not encoded:
        raise RequestError(f"{name} is empty; expected a JPEG, PNG or WebP.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; the limits here apply instead
            image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} has too many pixels.", 413) from error
    except Exception as error:  # Pillow raises many exception types on damaged data
        raise RequestError(f"cannot read {name}; expected a complete JPEG, PNG or WebP.") from error
    return image.format or "unknown", image.width, image.height
