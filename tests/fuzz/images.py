"""Valid image files of every kind that a source may contain, and damaged or hostile ones made from them."""

import io
import zlib
from functools import lru_cache
from random import Random

import cv2
import numpy as np
from PIL import Image

from .mutations import mutate_bytes

HEIGHT, WIDTH = 20, 28
NUM_CLASSES = 3
BOMB_SIDE = 4_000
"""Side of the largest valid image: small as a file, but 16 MB when it is decoded."""


def rgb_pixels() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def mask_ids() -> np.ndarray:
    """Ids of three classes and the ignore id, (H, W) uint8."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:, WIDTH // 2 :] = 1
    ids[HEIGHT // 2 :, : WIDTH // 3] = 2
    ids[0, 0] = 255
    return ids


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # an image that was saved as JPEG keeps the settings of the encoder
    return buffer.getvalue()


def frames_option(image: Image.Image) -> dict[str, object]:
    """Options of `save` for a second frame."""
    return {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}


@lru_cache(maxsize=1)
def seed_images() -> dict[str, bytes]:
    """Valid images by name; the suffix of a name is that of the file."""
    image = Image.fromarray(rgb_pixels())
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    exif[0x010E] = "description"
    deep = (rgb_pixels().astype(np.uint16) * 257)[..., ::-1]
    palette = image.quantize(16)
    return {
        "rgb.jpg": save(image, "JPEG"),
        "grey.jpg": save(image.convert("L"), "JPEG"),
        "cmyk.jpg": save(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": save(image, "JPEG", progressive=True),
        "rotated.jpg": save(turned, "JPEG", exif=exif),
        "frames.jpg": save(image, "MPO", **frames_option(image)),
        "rgb.png": save(image, "PNG"),
        "grey.png": save(image.convert("L"), "PNG"),
        "alpha.png": save(image.convert("RGBA"), "PNG"),
        "grey-alpha.png": save(image.convert("LA"), "PNG"),
        "palette.png": save(palette, "PNG", transparency=1),
        "grey16.png": save(Image.fromarray(deep[..., 0]), "PNG"),
        "rgb16.png": cv2.imencode(".png", deep)[1].tobytes(),
        "bits.png": save(image.convert("1"), "PNG"),
        "frames.png": save(image, "PNG", **frames_option(image)),
        "exif.png": save(image, "PNG", exif=exif),
        "rgb.webp": save(image, "WEBP"),
        "lossless.webp": save(image.convert("RGBA"), "WEBP", lossless=True),
        "frames.webp": save(image, "WEBP", **frames_option(image)),
        "rgb.bmp": save(image, "BMP"),
        "rgb.tif": save(image, "TIFF"),
        "lzw.tif": save(image, "TIFF", compression="tiff_lzw"),
        "frames.tif": save(image, "TIFF", **frames_option(image)),
        "rotated.tiff": save(turned, "TIFF", exif=exif),
        "float.tif": save(image.convert("F"), "TIFF"),
        "frames.gif": save(image, "GIF", **frames_option(image)),
        "rgb.ppm": save(image, "PPM"),
    }


@lru_cache(maxsize=1)
def seed_masks() -> dict[str, bytes]:
    """Valid masks by name: ids as grey values, palette indices, 16 bits, or bits."""
    ids = Image.fromarray(mask_ids())
    palette = Image.fromarray(mask_ids(), mode="P")
    palette.putpalette([channel for index in range(256) for channel in (index, 255 - index, index // 2)])
    return {
        "grey.png": save(ids, "PNG"),
        "palette.png": save(palette, "PNG"),
        "grey16.png": save(Image.fromarray(mask_ids().astype(np.uint16)), "PNG"),
        "bits.png": save(ids.convert("1"), "PNG"),
        "grey.bmp": save(ids, "BMP"),
        "grey.tif": save(ids, "TIFF"),
        "lzw.tiff": save(ids, "TIFF", compression="tiff_lzw"),
        "rgb.png": save(ids.convert("RGB"), "PNG"),
        "alpha.png": save(ids.convert("LA"), "PNG"),
    }


def png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def write_png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Returns a PNG with valid checksums; `rows` are the filtered rows before compression."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((depth, colour, 0, 0, 0))
    parts = (png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows, 9)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@lru_cache(maxsize=1)
def bombs() -> tuple[bytes, ...]:
    """Small files that claim or decompress to a large size."""
    seeds = seed_images()
    text = zlib.compress(bytes(2**26), 9)
    gif, bmp, tiff = bytearray(seeds["frames.gif"]), bytearray(seeds["rgb.bmp"]), seeds["rgb.tif"]
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp[18:26] = (2**31 - 1).to_bytes(4, "little") * 2
    return (
        write_png(50_000, 50_000, 8, 0, bytes(50_001)),
        write_png(2**31 - 1, 2**31 - 1, 8, 2, bytes(100)),
        write_png(13_000, 13_000, 8, 0, bytes(13_001 * 100)),  # below Pillow's own limit
        write_png(WIDTH, HEIGHT, 8, 0, bytes((WIDTH + 1) * HEIGHT), png_chunk(b"zTXt", b"x\0\0" + text)),
        write_png(WIDTH, HEIGHT, 8, 0, bytes((WIDTH + 1) * HEIGHT), png_chunk(b"iCCP", b"x\0\0" + text)),
        write_png(WIDTH, HEIGHT, 8, 0, bytes(2**26)),
        bytes(gif),
        bytes(bmp),
        tiff.replace((WIDTH).to_bytes(2, "little"), b"\xff\xff"),
    )


@lru_cache(maxsize=1)
def largest_image() -> bytes:
    return write_png(BOMB_SIDE, BOMB_SIDE, 8, 0, bytes((BOMB_SIDE + 1) * BOMB_SIDE))


def edit_png_header(draw: Random) -> bytes:
    """Returns a PNG with a random header and valid checksums."""
    width, height = (draw.choice((0, 1, WIDTH, 65_536, 2**24, 2**31)) for _ in range(2))
    depth, colour = draw.choice((0, 1, 2, 3, 4, 8, 16, 17, 255)), draw.choice((0, 1, 2, 3, 4, 6, 7, 255))
    extra = png_chunk(b"PLTE", draw.randbytes(draw.choice((0, 3, 6, 768, 769)))) if draw.random() < 0.5 else b""
    extra += png_chunk(b"tRNS", draw.randbytes(draw.choice((0, 1, 2, 6, 256)))) if draw.random() < 0.3 else b""
    return write_png(width % 2**32, height % 2**32, depth, colour, draw.randbytes(draw.choice((0, 100, 2000))), extra)


def hostile_image(draw: Random, seeds: dict[str, bytes]) -> bytes:
    """Returns a valid image of another kind, a damaged one, a bomb, or no image at all."""
    corpus = list(seeds.values())
    choice = draw.random()
    if choice < 0.55:
        return mutate_bytes(draw, draw.choice(corpus), corpus)
    if choice < 0.70:
        return draw.choice([*seed_images().values(), *seed_masks().values()])
    if choice < 0.85:
        return edit_png_header(draw)
    if choice < 0.93:
        return draw.choice(bombs())
    if choice < 0.935:
        return largest_image()
    return draw.choice((b"", b"\0", b"\xff\xd8", b"<html>", b"RIFF\xff\xff\xff\xffWEBP", draw.randbytes(500)))
