"""Images and masks as bytes."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from segray.core.errors import DataError
from segray.data.images import count_pixels, decode_image, decode_mask, encode_mask
from segray.data.normalize import PILLOW_MAX_PIXELS, NormalizedImage, normalize_image
from segray.data.source_masks import align_mask, decode_source_mask

RNG = np.random.default_rng(0)
COLOURS = cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (32, 24), interpolation=cv2.INTER_CUBIC)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, format, exif=exif)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_usable_images_keep_their_bytes(format, mode):
    source = encoded(Image.fromarray(COLOURS).convert(mode), format)
    stored = normalize_image(source, "x")
    assert (stored.encoded, stored.height, stored.width) == (source, 24, 32)
    assert (stored.reason, stored.orientation) == ("", 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_decoded_pixels_are_rgb_and_grey_is_repeated(format):
    pixels = decode_image(encoded(Image.fromarray(COLOURS), format, quality=95))
    assert (pixels.shape, pixels.dtype) == ((24, 32, 3), np.uint8)
    # A swap of red and blue would be off by about 80.
    assert np.abs(pixels.astype(int) - COLOURS).mean() < (10 if format == "JPEG" else 1e-9)
    grey = decode_image(encoded(Image.fromarray(COLOURS[..., 0]), "PNG"))
    assert np.array_equal(grey, np.repeat(COLOURS[..., :1], 3, axis=2))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotated_images_are_stored_upright(format, orientation):
    blocks = Image.fromarray(np.kron(RNG.integers(0, 2, (3, 4), np.uint8) * 255, np.ones((8, 8), np.uint8)))
    blocks = blocks.convert("RGB")
    stored = normalize_image(with_orientation(blocks, orientation, format), "x")
    tagged = Image.open(io.BytesIO(with_orientation(blocks, orientation, "JPEG")))
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    assert stored.orientation == orientation
    assert f"EXIF orientation {orientation}" in stored.reason
    assert (stored.height, stored.width) == expected.shape[:2]
    assert np.abs(decode_image(stored.encoded).astype(int) - expected).max() < 40


def test_orientation_is_applied_regardless_of_other_tags():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0128], exif[0x0131], exif[0x0132] = 6, 1.5, 2, "abc", "2020"
    source = bytearray(encoded(Image.fromarray(COLOURS), "JPEG", exif=exif))
    source[source.index(b"Exif\0\0") + 29] = 0  # in the tag of the resolution
    with pytest.raises(struct.error):  # Pillow's own way writes all tags anew
        ImageOps.exif_transpose(Image.open(io.BytesIO(source)))
    stored = normalize_image(bytes(source), "x.jpg")
    assert (stored.orientation, stored.height, stored.width) == (6, 32, 24)
    expected = np.rot90(np.asarray(Image.open(io.BytesIO(source))), -1)
    assert np.array_equal(decode_image(stored.encoded), expected)


def test_other_images_become_8_bit_rgb_or_grey_with_a_reason():
    rgb = Image.fromarray(COLOURS)
    deep = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 256 + 77)
    _, deep_rgb = cv2.imencode(".png", COLOURS[..., ::-1].astype(np.uint16) * 256 + 77)
    transparent = Image.fromarray(np.dstack([COLOURS, np.full((24, 32), 9, np.uint8)]))
    cases = {
        "pixels of type CMYK": encoded(rgb.convert("CMYK"), "JPEG", quality=100),
        "alpha": encoded(transparent, "PNG"),
        "several frames": encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "format BMP": encoded(rgb, "BMP"),
        "16 bits": deep_rgb.tobytes(),
    }
    for reason, source in cases.items():
        stored = normalize_image(source, "x")
        assert reason in stored.reason
        assert np.abs(decode_image(stored.encoded).astype(int) - COLOURS).mean() < 8, reason
        assert Image.open(io.BytesIO(stored.encoded)).mode == "RGB"
    grey = normalize_image(encoded(deep, "PNG"), "x")
    assert "16 bits" in grey.reason
    assert np.array_equal(decode_image(grey.encoded)[..., 0], COLOURS[..., 0])
    palette = normalize_image(encoded(rgb.quantize(16), "PNG"), "x")
    assert np.array_equal(decode_image(palette.encoded), np.asarray(rgb.quantize(16).convert("RGB")))


def test_a_stored_png_has_no_orientation_tag():
    stored = normalize_image(with_orientation(Image.fromarray(COLOURS), 6), "x")
    assert not Image.open(io.BytesIO(stored.encoded)).getexif()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncated_images_are_errors_that_name_the_file(format):
    source = encoded(Image.fromarray(np.kron(COLOURS, np.ones((8, 8, 1), np.uint8))), format)
    for damaged in (source[: len(source) // 2], b"", b"no image", source[:30]):
        with pytest.raises(DataError, match=r"train/x\.jpg cannot be read"):
            normalize_image(damaged, "train/x.jpg")


def test_pixel_types_without_an_8_bit_equivalent_are_errors():
    with pytest.raises(DataError, match=r"x\.tif has pixels of type F"):
        normalize_image(encoded(Image.fromarray(COLOURS[..., 0].astype(np.float32)), "TIFF"), "x.tif")


def test_too_many_pixels_are_an_error_before_decoding(monkeypatch):
    source = encoded(Image.fromarray(COLOURS), "BMP")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"x\.bmp has 768 pixels; expected at most 767"):
        normalize_image(source, "x.bmp", max_pixels=767)
    with pytest.raises(DataError, match=r"y\.bmp has 768 pixels; expected at most 767"):
        decode_source_mask(source, "y.bmp", max_pixels=767)
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(DataError, match=r"z\.png has more than 178956970 pixels; expected at most 134217728"):
        decode_source_mask(bomb, "z.png")
    assert 2 * Image.MAX_IMAGE_PIXELS == PILLOW_MAX_PIXELS


def test_the_message_for_unknown_formats_is_deterministic():
    for damaged in (b"", b"no image"):
        with pytest.raises(DataError) as error:
            normalize_image(damaged, "x.jpg")
        message = f"x.jpg cannot be read as an image (unknown format, {len(damaged)} bytes); replace or remove it."
        assert str(error.value) == message


@pytest.mark.parametrize("most", [254, 65535])
def test_encoded_masks_decode_losslessly(most):
    mask = RNG.integers(0, most + 1, (17, 23)).astype(np.uint8 if most < 256 else np.uint16)
    decoded = decode_mask(encode_mask(mask))
    assert decoded.dtype == mask.dtype
    assert np.array_equal(decoded, mask)


def test_damaged_columns_are_errors():
    for damaged in (b"", b"no image", encode_mask(np.zeros((9, 9), np.uint8))[:40]):
        with pytest.raises(DataError, match="convert the dataset again"):
            decode_mask(damaged)
    for damaged in (b"", b"no image"):
        with pytest.raises(DataError, match="convert the dataset again"):
            decode_image(damaged)
    with pytest.raises(DataError, match="contains a RGB image"):
        decode_mask(encoded(Image.fromarray(COLOURS), "PNG"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_decode_to_indices_at_every_depth(bits):
    ids = RNG.integers(0, 2**bits, (9, 13)).astype(np.uint8)
    mask = Image.fromarray(ids)
    mask.putpalette(list(RNG.integers(0, 256, 3 * 2**bits)))
    assert np.array_equal(decode_source_mask(encoded(mask, "PNG", bits=bits), "x"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_decode_to_stored_values_at_every_depth(bits):
    ids = RNG.integers(0, 2**bits, (8, 16)).astype(np.uint16)
    assert np.array_equal(decode_source_mask(grey_png(ids, bits), "x"), ids)


def grey_png(ids: np.ndarray, bits: int) -> bytes:
    """A grey PNG of any depth, put together by hand: Pillow writes 1, 8 and 16 bits only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    digits = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(len(ids), -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("LA", 2)])
def test_masks_with_several_channels_are_errors(mode, channels):
    with pytest.raises(DataError, match=rf"masks/x\.png is a mask with {channels} channels \({mode}\)"):
        decode_source_mask(encoded(Image.fromarray(COLOURS).convert(mode), "PNG"), "masks/x.png")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_is_rotated_only_if_its_size_differs_from_the_image(orientation):
    ids = RNG.integers(0, 255, (6, 9)).astype(np.uint8)
    # Pillow's own rotation of the same numbers is the truth.
    tagged = Image.open(io.BytesIO(with_orientation(Image.fromarray(ids), orientation, "PNG")))
    upright = np.asarray(ImageOps.exif_transpose(tagged))
    image = NormalizedImage(b"", 9, 6, orientation, "rotated")
    assert np.array_equal(align_mask(ids, image, "i", "m"), upright)
    assert np.array_equal(align_mask(upright, image, "i", "m"), upright)


@pytest.mark.parametrize(("orientation", "size"), [(6, (7, 7)), (3, (6, 9)), (2, (6, 9))])
def test_an_ambiguous_rotation_is_an_error(orientation, size):
    image = NormalizedImage(b"", *size, orientation, "rotated")
    with pytest.raises(DataError, match=f"i has EXIF orientation {orientation}.*m does not show"):
        align_mask(np.zeros(size, np.uint8), image, "i", "m")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_different_sizes_are_errors_with_both_sizes(orientation):
    image = NormalizedImage(b"", 9, 6, orientation, "")
    with pytest.raises(DataError, match="m is 5x9 but i is 6x9"):
        align_mask(np.zeros((9, 5), np.uint8), image, "i", "m")


def test_an_upright_image_never_rotates_its_mask():
    image = NormalizedImage(b"", 9, 6, 1, "")
    with pytest.raises(DataError, match="m is 9x6 but i is 6x9"):
        align_mask(np.zeros((6, 9), np.uint8), image, "i", "m")


def test_a_conversion_refuses_an_image_that_training_cannot_decode():
    """Pillow ignores checksums and bytes after the last row; the decoder of training does not."""
    encoded = bytearray(cv2.imencode(".png", np.zeros((20, 28), np.uint8))[1].tobytes())
    length = int.from_bytes(encoded[33:37], "big")
    encoded[41 + length] ^= 1  # the checksum of the pixels
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        normalize_image(bytes(encoded), "a.png")


def bomb(kind: str) -> bytes:
    """A small image file with 20,000 x 20,000 pixels in its header."""
    if kind == "PNG":
        return encoded(Image.new("1", (20_000, 20_000)), "PNG")
    source, side = bytearray(encoded(Image.fromarray(COLOURS), kind)), (20_000).to_bytes(2, "big")
    if kind == "JPEG":
        frame = source.index(b"\xff\xc0")
        source[frame + 5 : frame + 9] = side * 2
    else:
        source[26:30] = (16_383).to_bytes(2, "little") * 2
    return bytes(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_stored_image_with_too_many_pixels_is_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    pixels = 16_383**2 if kind == "WEBP" else 20_000**2
    with pytest.raises(DataError, match=f"image of {pixels} pixels; expected at most 178956970"):
        decode_image(bomb(kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "lossless", "alpha", "rotated", "progressive"])
def test_the_size_in_the_header_is_that_of_the_pixels(kind):
    image = Image.fromarray(COLOURS)
    source = {
        "lossless": lambda: encoded(image, "WEBP", lossless=True),
        "alpha": lambda: encoded(image.convert("RGBA"), "WEBP", exif=b"Exif\0\0abc"),
        "rotated": lambda: with_orientation(image, 6),
        "progressive": lambda: encoded(image, "JPEG", progressive=True, comment=b"x" * 999),
    }.get(kind, lambda: encoded(image, kind))()
    assert count_pixels(source) == 24 * 32
    assert decode_image(source).shape == (24, 32, 3)
    for length in range(0, 60, 3):
        assert count_pixels(source[:length]) >= 0


def test_a_stored_mask_with_too_many_pixels_is_an_error():
    with pytest.raises(DataError, match="a mask column are not a mask"):
        decode_mask(encoded(Image.new("L", (20_000, 20_000)), "PNG"))
