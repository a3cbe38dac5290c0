"""What may be asked: an image within limits, and the form of the answer."""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from segray.config import ServeConfig
from segray.core.errors import SegrayError

IMAGE_TYPES = {"image/jpeg": ("JPEG", "MPO"), "image/png": ("PNG",), "image/webp": ("WEBP",)}
"""Media types that are taken, and what Pillow calls them; a telephone's MPO is a JPEG with another behind it."""
MIB = 2**20

Output = Literal["mask", "overlay", "json"]
IncludeField = Literal["polygons", "rle", "mask", "colours"]
"""What a JSON answer may hold beside the classes' shares."""


class RequestError(SegrayError):
    """A request that is not answered, and why.

    Args:
        reason: what is wrong, what was expected.
        status: of HTTP.
    """

    def __init__(self, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.status = status

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, int]]:
        return RequestError, (str(self), self.status)


@dataclass(frozen=True)
class ResponseOptions:
    """How an answer is to look.

    Attributes:
        output: the mask of ids, the image with the classes' colours over it, or figures.
        include: what is wanted beside the shares, in figures.
        opacity: of the colours in an overlay, 0 to 1.
    """

    output: Output = "mask"
    include: frozenset[IncludeField] = frozenset()
    opacity: float = 0.5


def validate_length(length: int, limits: ServeConfig) -> None:
    """Refuses a body that is too long, given how many bytes of it are known of.

    Raises:
        RefusedError: it is.
    """
    if length > limits.most_mib * MIB:
        raise RequestError(f"the request has more than {limits.most_mib:g} MiB; expected at most so many.", 413)


def validate_image(encoded: bytes, limits: ServeConfig, name: str = "the image") -> None:
    """Refuses what is no image of a known format, or a larger one than is taken; only its header is read.

    Raises:
        RefusedError: it is such.
    """
    kind, width, height = _header(encoded, name)
    if kind not in {one for known in IMAGE_TYPES.values() for one in known}:
        raise RequestError(f"{name} is {kind}; expected {', '.join(IMAGE_TYPES)}.", 415)
    if width * height > limits.most_pixels:
        raise RequestError(f"{name} is {width}x{height}; expected at most {limits.most_pixels} pixels.", 413)


def _header(encoded: bytes, name: str) -> tuple[str, int, int]:
    if not encoded:
        raise RequestError(f"{name} has no bytes; expected a JPEG, PNG or WebP.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: ours are the limits that count
            image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} has too many pixels.", 413) from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        raise RequestError(f"{name} cannot be read as an image; expected a whole JPEG, PNG or WebP.") from error
    return image.format or "of no known format", image.width, image.height
