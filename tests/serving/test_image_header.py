"""The header of an image is read in bounded time, and agrees with Pillow."""

import io
import zlib
from contextlib import suppress
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segray.config import ServeConfig
from segray.core.errors import DataError
from segray.data.normalize import decode_upright
from segray.serving.image_header import HeaderError, read_image_header
from segray.serving.requests import RequestError, validate_image

MIB20 = 20 * 2**20
SAVED = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(60000), "icc_profile": bytes(2**18)}),
    ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (7, 5))]}),
    ("PNG", {}),
    ("PNG", {"icc_profile": bytes(2**18)}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"icc_profile": bytes(1000)}),
    ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (7, 5), "red")]}),
]


def encode(image, kind, options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["RGB", "L", "RGBA"]), st.sampled_from(SAVED))
def test_format_and_size_are_those_of_pillow(width, height, mode, saved):
    kind, options = saved
    options = dict(options)
    if "append_images" in options:
        options["append_images"] = [options["append_images"][0].resize((width, height))]
    image = Image.new("RGB" if kind in {"JPEG", "MPO"} and mode == "RGBA" else mode, (width, height))
    encoded = encode(image, kind, options)
    header = read_image_header(encoded)
    opened = Image.open(io.BytesIO(encoded), formats=(header.format,))
    assert (header.width, header.height) == opened.size == (width, height)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF"]))
def test_random_bytes_have_a_size_or_a_reason(content, signature):
    with suppress(HeaderError):  # any other exception fails the test
        assert read_image_header(signature + content).pixels > 0


def png_chunk(kind, content=b""):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


PNG = encode(Image.new("RGB", (8, 8)), "PNG", {})
JPEG = encode(Image.fromarray(np.zeros((8, 8, 3), np.uint8)), "JPEG", {"progressive": True})
SCAN = JPEG[JPEG.index(b"\xff\xda") : JPEG.index(b"\xff\xda", JPEG.index(b"\xff\xda") + 1)]
HOSTILE = {
    "PostScript comments": b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"%x\n" * (MIB20 // 3),
    "PostScript blank lines": b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"\n" * MIB20,
    "PPM of spaces": b"P6" + b" " * MIB20,
    "XBM of lines": b"#define x 1\n" * (MIB20 // 12),
    "JPEG of fill bytes": b"\xff\xd8" + b"\xff" * MIB20,
    "JPEG of junk": b"\xff\xd8\xff\xe0\0\2" + b"x" * MIB20,
    "JPEG of segments": b"\xff\xd8" + b"\xff\xe0\0\2" * (MIB20 // 4),
    "JPEG of scans": JPEG[: JPEG.index(b"\xff\xda")] + SCAN * 2000 + b"\xff\xd9",
    "PNG of chunks": PNG[:33] + png_chunk(b"teXt") * (MIB20 // 12),
    "PNG of data chunks": PNG[:33] + png_chunk(b"IDAT") * (MIB20 // 12),
    "GIF": b"GIF89a" + bytes(MIB20),
    "TIFF": b"II*\0\x08\0\0\0" + b"\xff" * MIB20,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_in_a_few_milliseconds(case):
    """The same bytes keep Pillow busy for seconds, so the bound has room for a busy machine."""
    started_at = perf_counter()
    with pytest.raises(RequestError) as refused:
        validate_image(HOSTILE[case], ServeConfig())
    assert perf_counter() - started_at < 0.5
    assert refused.value.status in {415, 422}
    assert "expected" in str(refused.value) or "save it" in str(refused.value)


def jpeg(size, kind="JPEG"):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), kind, {})


def png_with_second_header():
    """A PNG whose second IHDR, of 256x256 RGBA, replaces the first one, of 1x1."""
    second = encode(Image.new("RGBA", (256, 256)), "PNG", {})
    return PNG[:8] + png_chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\6\0\0\0") + second[8:]


FRAME_OF_ONE_PIXEL = b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0"


def jpeg_with_hidden_frame(start, position):
    """A JPEG of 256x256 with a frame of 1x1 inside the metadata. A reader that skips to `position` sees this frame."""
    encoded = b"\xff\xd8" + start + b"\xff\xe1"
    content = bytes(position - len(encoded) - 2) + FRAME_OF_ONE_PIXEL + b"\xff\xda\0\2" + bytes(100)
    return encoded + (2 + len(content)).to_bytes(2, "big") + content + jpeg(256)[2:]


def webp_with_other_frame():
    """A WebP whose canvas has one pixel, and its image 256x256."""
    image = encode(Image.new("RGB", (256, 256)), "WEBP", {"lossless": True})[12:]
    canvas = b"VP8X\x0a\0\0\0" + bytes(10)
    return b"RIFF" + (4 + len(canvas) + len(image)).to_bytes(4, "little") + b"WEBP" + canvas + image


MALFORMED = {
    "PNG with two IHDR": png_with_second_header(),
    "JPEG with FF 00": jpeg_with_hidden_frame(b"\xff\0\0\6", 10),
    "JPEG with junk": jpeg_with_hidden_frame(b"xx", 10),
    "JPEG with many fill bytes": jpeg_with_hidden_frame(b"\xff" * 5000, 4096 + 2 + 0xFFFF),
    "JPEG with two frames": b"\xff\xd8" + FRAME_OF_ONE_PIXEL + jpeg(256)[2:],
    "WebP with another frame": webp_with_other_frame(),
}


def decoded_size(encoded):
    """The (width, height) according to the header, or `None` if the image is refused, and that of the pixels."""
    try:
        header = read_image_header(encoded)
    except HeaderError:
        return None
    try:
        height, width = decode_upright(encoded, "the image", 2**20, (header.format,)).shape[:2]
    except DataError:
        return None
    return {header.width, header.height}, {width, height}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_header_that_differs_from_the_pixels_is_refused(case):
    sizes = decoded_size(MALFORMED[case])
    assert sizes is None or sizes[0] == sizes[1]


ORIGINALS = [jpeg(40), JPEG, encode(Image.new("RGBA", (40, 30)), "PNG", {}), PNG, jpeg(40, "WEBP"), *MALFORMED.values()]
MARKERS = st.sampled_from([b"\xff", b"\xff\0", FRAME_OF_ONE_PIXEL, b"\xff\xda", b"IHDR", b"VP8X"])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ORIGINALS),
    st.lists(st.tuples(st.integers(0, 200), st.booleans(), MARKERS | st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_whenever_both_accept_an_image_they_agree_on_its_size(original, edits):
    encoded = bytearray(original)
    for position, is_insertion, content in edits:
        encoded[position : position if is_insertion else position + len(content)] = content
    sizes = decoded_size(bytes(encoded))
    assert sizes is None or sizes[0] == sizes[1]
