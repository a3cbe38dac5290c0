"""Built-in demo dataset: street images generated from a seed, so that segray runs without a download."""

from functools import lru_cache, partial

import cv2
import numpy as np

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.images import encode_mask
from segray.data.sources.sample import SourceListing, SourceSample
from segray.data.sources.street.camera import PALETTE
from segray.data.sources.street.scene import draw_street

SPLITS = {"train": 320, "val": 60, "test": 60}

_JPEG_QUALITY = 92
_TYPICAL_BYTES = 16_000


def list_samples(source: str | None) -> SourceListing:
    """Lists the samples and classes of the demo dataset.

    Raises:
        DataError: a source folder was given.
    """
    if source is not None:
        raise DataError(f"format demo generates its images and has no source; remove --source {source}.")
    return SourceListing(demo_samples(), demo_classes())


def demo_classes() -> Classes:
    """Returns the names and colours of the classes."""
    return Classes(names=tuple(PALETTE), palette=tuple(PALETTE.values()))


def demo_samples(seed: int = 0, splits: dict[str, int] | None = None) -> tuple[SourceSample, ...]:
    """Returns the given number of samples for each split; each depends only on seed, split and index."""
    return tuple(_sample(seed, split, index) for split, rows in (splits or SPLITS).items() for index in range(rows))


def _sample(seed: int, split: str, index: int) -> SourceSample:
    return SourceSample(
        split=split,
        id=f"{split}/street_{index:05d}",
        image=f"image {index} of demo split {split}",
        mask=f"mask {index} of demo split {split}",
        size_bytes=_TYPICAL_BYTES,
        read_image=partial(_image, seed, split, index),
        read_mask=partial(_mask, seed, split, index),
        version=f"seed {seed}",
    )


def _image(seed: int, split: str, index: int) -> bytes:
    return _generate_pair(seed, split, index)[0]


def _mask(seed: int, split: str, index: int) -> bytes:
    return _generate_pair(seed, split, index)[1]


@lru_cache(maxsize=1)
def _generate_pair(seed: int, split: str, index: int) -> tuple[bytes, bytes]:
    """Generates the JPEG and the PNG of a street; cached, because image and mask are read separately."""
    pixels, ids = draw_street(np.random.default_rng([seed, *split.encode(), index]))
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
    return jpeg.tobytes(), encode_mask(ids)
