"""Images are opened by named formats only, and decoded without a detour over a re-encoded file."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from segray.core.errors import DataError
from segray.data.images import decode_image
from segray.data.normalize import decode_upright, normalize_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)


def encode(mode, kind, **options):
    pixels = PIXELS if mode == "RGBA" else PIXELS[..., :3].copy()
    image = Image.fromarray(pixels[..., 0] * np.uint16(9)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


CASES = {
    "JPEG": encode("RGB", "JPEG"),
    "grey JPEG": encode("L", "JPEG"),
    "CMYK JPEG": encode("CMYK", "JPEG"),
    "rotated JPEG": encode("RGB", "JPEG", exif=exif(6)),
    "mirrored JPEG": encode("RGB", "JPEG", exif=exif(2)),
    "PNG": encode("RGB", "PNG"),
    "PNG with alpha": encode("RGBA", "PNG"),
    "PNG of 16 bits": encode("I;16", "PNG"),
    "palette PNG": encode("P", "PNG"),
    "black and white PNG": encode("1", "PNG"),
    "rotated PNG": encode("RGB", "PNG", exif=exif(8)),
    "WebP": encode("RGB", "WEBP"),
    "WebP with alpha": encode("RGBA", "WEBP"),
    "animated WebP": encode("RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "TIFF": encode("RGB", "TIFF", exif=exif(6)),
    "BMP": encode("RGB", "BMP"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pixels_equal_those_of_the_stored_form(case):
    pixels = decode_upright(CASES[case], "the image", 10_000)
    assert np.array_equal(pixels, decode_image(normalize_image(CASES[case], "the image").encoded))
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("kind", ["EPS", "PPM", "PCX"])
def test_other_formats_of_pillow_are_unknown(kind):
    encoded = encode("RGB", kind)
    for read in (normalize_image, decode_upright):
        with pytest.raises(DataError, match="unknown format"):
            read(encoded, "the image", 10_000)


def test_only_the_named_formats_are_read():
    with pytest.raises(DataError, match="unknown format"):
        decode_upright(CASES["PNG"], "the image", 10_000, ("JPEG",))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_images_with_several_frames_are_reencoded(kind):
    several = encode("RGB", kind, save_all=True, append_images=[Image.new("RGB", (40, 24))])
    assert "several frames" in normalize_image(several, "the image").reason
    assert "several frames" not in normalize_image(encode("RGB", kind), "the image").reason


def test_several_frames_of_an_mpo_file_are_allowed():
    several = encode("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    assert Image.open(io.BytesIO(several)).is_animated
    assert normalize_image(several, "the image").encoded == several


def test_the_time_for_a_tiff_does_not_depend_on_its_number_of_frames():
    tiff = bytearray(encode("RGB", "TIFF"))
    start = int.from_bytes(tiff[4:8], "little")
    entries = bytes(tiff[start : start + 2 + 12 * int.from_bytes(tiff[start : start + 2], "little")])
    next_start = start + len(entries)
    for _ in range(6_000):  # copies of the directory, each with the position of the next one
        tiff[next_start : next_start + 4] = len(tiff).to_bytes(4, "little")
        next_start = len(tiff) + len(entries)
        tiff += entries + bytes(4)
    started_s = time.process_time()
    assert "several frames" in normalize_image(bytes(tiff), "the image").reason
    assert time.process_time() - started_s < 1
