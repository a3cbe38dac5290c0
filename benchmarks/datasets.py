"""Datasets for benchmarks: rows of an existing dataset, resized and repeated as needed."""

from functools import lru_cache, partial
from pathlib import Path

import cv2

from segray.data.convert.convert import convert_dataset
from segray.data.images import decode_image, decode_mask, encode_mask, resize_image, resize_mask
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.sources.sample import SourceListing, SourceSample

SPLIT = "train"
JPEG_QUALITY = 92
TYPICAL_BYTES = 60_000
MAX_ROWS = 256  # of the original; only the amount of data matters, not its variety


def write_resized_dataset(root: str, split: str, size: int | None, rows: int, out: Path) -> SplitReader:
    """Writes `rows` rows of a dataset as square JPEGs and masks of `size` px, and returns a reader of them.

    With `size` `None`, the images keep their size. Requires a connected Ray cluster.

    Raises:
        DataError: the dataset or split does not exist, or the disk is full.
    """
    manifest = read_manifest(root)
    num_distinct = min(rows, manifest.split(split).rows, MAX_ROWS)
    samples = []
    for number in range(rows):
        image, mask = (
            partial(_read_part, root, split, size, num_distinct, number % num_distinct, part) for part in (0, 1)
        )
        name = f"{SPLIT}/{number:07d}"
        samples.append(SourceSample(SPLIT, name, name, name, TYPICAL_BYTES, image, mask))
    convert_dataset(SourceListing(tuple(samples), manifest.classes, absent_ok=True), str(out))
    return SplitReader(str(out), read_manifest(str(out)).split(SPLIT))


def _read_part(root: str, split: str, size: int | None, num_distinct: int, index: int, part: int) -> bytes:
    return load_encoded(root, split, size, num_distinct)[index][part]


@lru_cache(maxsize=1)
def load_encoded(root: str, split: str, size: int | None, num_distinct: int) -> list[tuple[bytes, bytes]]:
    """Returns the encoded images and masks of the first rows, cached per process."""
    source = SplitReader(root, read_manifest(root).split(split))
    groups = sorted(set(source.groups_of_rows(range(num_distinct)).tolist()))
    table = source.read(groups)
    pairs = zip(table["image"].to_pylist()[:num_distinct], table["mask"].to_pylist()[:num_distinct], strict=True)
    return [pair if size is None else _resize_pair(*pair, size) for pair in pairs]


def _resize_pair(image: bytes, mask: bytes, size: int) -> tuple[bytes, bytes]:
    pixels = cv2.cvtColor(resize_image(decode_image(image), size, size), cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return jpeg.tobytes(), encode_mask(resize_mask(decode_mask(mask), size, size))
