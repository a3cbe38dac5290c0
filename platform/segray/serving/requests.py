"""Validation of requests: image limits and response options."""

from dataclasses import dataclass
from typing import Literal

from segray.config import ServeConfig
from segray.core.errors import SegrayError
from segray.core.numbers import MIB
from segray.serving.image_header import HeaderError, ImageHeader, UnknownFormatError, read_image_header

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
"""Accepted media types."""
CLIENT_CLOSED = 499
"""Status code in the metrics for requests whose client disconnected before the response."""

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


class ResponseSizeError(RequestError):
    """Error for a request whose response would be too large."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"the response is larger than the limit of {max_bytes / MIB:g} MiB; request rle instead of polygons, fewer "
            "images, or a smaller image.",
            413,
        )
        self._max_bytes = max_bytes

    def __reduce__(self) -> tuple[type["ResponseSizeError"], tuple[int]]:  # type: ignore[override]
        return ResponseSizeError, (self._max_bytes,)


@dataclass(frozen=True)
class ResponseOptions:
    """Response options of a request.

    Attributes:
        output: type of the response. "mask" is the mask of class ids, "overlay" is the image with the class colours
            drawn over it, "json" is the class shares as JSON.
        include: optional fields of a JSON response.
        opacity: opacity of the colours in an overlay, 0 to 1.
        is_embedded: whether the response is an element of the JSON array of a batch.
        max_bytes: maximum size of the response in bytes.
        version: version of the model that answers. The replica sets it.
    """

    output: Output = "mask"
    include: frozenset[IncludeField] = frozenset()
    opacity: float = 0.5
    is_embedded: bool = False
    max_bytes: int = 2**31
    version: str = ""

    @property
    def has_shapes(self) -> bool:
        """Whether the response contains the shape of each class."""
        return self.output == "json" and bool(self.include & {"polygons", "rle"})

    def require_size(self, num_bytes: int) -> None:
        """Checks the size of a response, or a lower bound of it.

        Raises:
            ResponseSizeError: the response is too large.
        """
        if num_bytes > self.max_bytes:
            raise ResponseSizeError(self.max_bytes)


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


def header_rejection(error: HeaderError, name: str) -> RequestError:
    """Returns the error for a request with an image of another format (status 415) or a damaged header (422)."""
    return RequestError(f"cannot read {name}: it {error}.", 415 if isinstance(error, UnknownFormatError) else 422)


def validate_image(encoded: bytes, limits: ServeConfig, name: str = "the image") -> ImageHeader:
    """Returns the header of an image. Rejects data of an unknown format, and images that are too large.

    Only the header is read, in bounded time.

    Raises:
        RequestError: the image is unreadable (status 422), of another format (415) or too large (413).
    """
    if not encoded:
        raise RequestError(f"{name} is empty; expected a JPEG, PNG or WebP.")
    try:
        header = read_image_header(encoded)
    except HeaderError as error:
        raise header_rejection(error, name) from error
    if header.pixels > limits.max_image_pixels:
        raise RequestError(
            f"{name} is {header.width}x{header.height}; expected at most {limits.max_image_pixels} pixels.", 413
        )
    return header
