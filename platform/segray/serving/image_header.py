"""Header of an encoded image: its format and size, read in bounded time and without an image library.

The decoders that read the complete image run in a replica. Their time depends on the size of the image, and also on
the number of its parts, which an attacker chooses. Therefore the number of parts is limited here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segray.core.errors import SegrayError

MAX_JPEG_SEGMENTS = 4096
"""Maximum number of JPEG segments and fill bytes before the first scan. A colour profile of 16 MiB needs 256."""
MAX_JPEG_SCANS = 64
"""Maximum number of scans in a JPEG file. A progressive image has 10, and a file may contain several images."""
MAX_PNG_CHUNKS = 16384
"""Maximum number of PNG chunks. libpng writes one chunk per 8 KiB of data."""
SIGNATURE_BYTES = 8
"""Length of the longest signature."""
_NO_PARAMETERS = {0x01, *range(0xD0, 0xD8)}
"""JPEG markers without a segment: TEM and RST0 to RST7."""
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _FILL = 0xDA, 0xFF
_DAMAGED_MARKERS = {0x00, *range(0x02, 0xC0), 0xD8, 0xD9}
"""JPEG markers that are invalid before the first scan. Decoders do not agree on what follows them."""
_PNG_HEADER_CHUNK = b"\0\0\0\x0dIHDR"
"""Length and type of the first PNG chunk."""
_OTHER_FORMATS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%!PS": "EPS"}
"""Signatures of common formats that are not accepted, for the message."""


class HeaderError(SegrayError):
    """Error for an image without a valid header, with the rest of a sentence that begins with the image's name."""


class UnknownFormatError(HeaderError):
    """Error for an image of a format that is not accepted."""


@dataclass(frozen=True)
class ImageHeader:
    """Header of an encoded image.

    Attributes:
        format: name of the format in Pillow. JPEG includes MPO, a JPEG file with several images.
        width, height: size in pixels, before the rotation that its EXIF orientation requires.
    """

    format: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height


def read_image_header(encoded: bytes) -> ImageHeader:
    """Returns the format and the size of a JPEG, PNG or WebP image.

    Raises:
        UnknownFormatError: the image has another known format.
        HeaderError: the header is damaged, or the image has more parts than any usual encoder writes.
    """
    for signature, (image_format, read_size) in _READERS.items():
        if encoded.startswith(signature):
            try:
                width, height = read_size(encoded)
            except IndexError:
                raise HeaderError("is truncated; expected a complete JPEG, PNG or WebP") from None
            if width < 1 or height < 1:
                raise HeaderError(f"is {width}x{height}; expected at least one pixel")
            return ImageHeader(image_format, width, height)
    require_known_format(encoded)
    raise AssertionError


def require_known_format(start: bytes) -> None:
    """Checks the signature at the start of an image.

    Args:
        start: the first `SIGNATURE_BYTES` bytes of an image, or more.

    Raises:
        UnknownFormatError: the image has another known format.
        HeaderError: the start belongs to no known format.
    """
    if any(start.startswith(signature) for signature in _READERS):
        return
    for signature, name in _OTHER_FORMATS.items():
        if start.startswith(signature):
            raise UnknownFormatError(f"has the format {name}; expected image/jpeg, image/png, image/webp")
    raise HeaderError("has an unknown format; expected a complete JPEG, PNG or WebP")


def _read_jpeg_size(encoded: bytes) -> tuple[int, int]:
    size, position = (0, 0), 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = encoded[position + 1]
        if encoded[position] != 0xFF or marker in _DAMAGED_MARKERS:
            raise HeaderError("has a damaged JPEG header; expected a complete JPEG")
        if marker == _START_OF_SCAN:
            _require_few_scans(encoded)
            return size
        if marker in _START_OF_FRAME:
            if size != (0, 0):
                raise HeaderError("has several JPEG frame headers; expected one")
            size = _big_endian(encoded, position + 7, 2), _big_endian(encoded, position + 5, 2)
        position += _jpeg_segment_length(encoded, position)
    raise HeaderError(f"has more than {MAX_JPEG_SEGMENTS} JPEG segments; save it again without metadata")


def _jpeg_segment_length(encoded: bytes, position: int) -> int:
    """Returns the number of bytes from the marker at a position to the next one."""
    marker = encoded[position + 1]
    if marker == _FILL:
        return 1
    if marker in _NO_PARAMETERS:
        return 2
    length = _big_endian(encoded, position + 2, 2)
    if length < 2:
        raise HeaderError(f"has a JPEG segment of {length} bytes; expected at least 2")
    return 2 + length


def _require_few_scans(encoded: bytes) -> None:
    # NumPy releases the interpreter lock, bytes.count does not. In image data, a zero follows each 0xFF.
    content = np.frombuffer(encoded, np.uint8)
    num_scans = np.count_nonzero((content[:-1] == 0xFF) & (content[1:] == _START_OF_SCAN))
    if num_scans > MAX_JPEG_SCANS:
        raise HeaderError(f"has {num_scans} JPEG scans; expected at most {MAX_JPEG_SCANS}; save it as a baseline JPEG")


def _read_png_size(encoded: bytes) -> tuple[int, int]:
    if encoded[8:16] != _PNG_HEADER_CHUNK or len(encoded) < 33:
        raise HeaderError("has a damaged PNG header; expected a complete PNG")
    position = 33
    for _ in range(MAX_PNG_CHUNKS):
        kind = encoded[position + 4 : position + 8]
        if len(kind) < 4 or kind == b"IEND":
            return _big_endian(encoded, 16, 4), _big_endian(encoded, 20, 4)
        if kind == b"IHDR":
            raise HeaderError("has several PNG headers; expected one")
        position += 12 + _big_endian(encoded, position, 4)
    raise HeaderError(f"has more than {MAX_PNG_CHUNKS} PNG chunks; save it again with larger chunks")


def _read_webp_size(encoded: bytes) -> tuple[int, int]:
    kind = encoded[12:16]
    if encoded[8:12] != b"WEBP" or len(encoded) < 30:
        raise HeaderError("has a damaged WebP header; expected a complete WebP")
    if kind == b"VP8X":
        return 1 + _little_endian(encoded, 24, 3), 1 + _little_endian(encoded, 27, 3)
    if kind == b"VP8 ":
        return _little_endian(encoded, 26, 2) & 0x3FFF, _little_endian(encoded, 28, 2) & 0x3FFF
    if kind == b"VP8L":
        sides = _little_endian(encoded, 21, 4)
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    raise HeaderError("has a damaged WebP header; expected a complete WebP")


def _big_endian(encoded: bytes, position: int, length: int) -> int:
    return int.from_bytes(_slice(encoded, position, length), "big")


def _little_endian(encoded: bytes, position: int, length: int) -> int:
    return int.from_bytes(_slice(encoded, position, length), "little")


def _slice(encoded: bytes, position: int, length: int) -> bytes:
    """Returns a slice of the given length. Raises IndexError at the end of the image."""
    if position + length > len(encoded):
        raise IndexError(position)
    return encoded[position : position + length]


_READERS: dict[bytes, tuple[str, Callable[[bytes], tuple[int, int]]]] = {
    b"\xff\xd8": ("JPEG", _read_jpeg_size),
    b"\x89PNG\r\n\x1a\n": ("PNG", _read_png_size),
    b"RIFF": ("WEBP", _read_webp_size),
}
