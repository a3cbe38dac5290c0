"""Fixtures of the source tests: small images and masks, and a conversion."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.data.convert.convert import convert_dataset
from segray.data.images import decode_mask

SIZE = (4, 6)


@pytest.fixture
def write_image():
    """Function that writes an RGB image of 6x4 pixels."""

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(path.name.encode())).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(path)

    return write


@pytest.fixture
def write_mask():
    """Function that writes a mask: ids (H, W), or colours (H, W, 3), or ids with a palette."""

    def write(path: Path, pixels, palette=None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(pixels, np.uint8))
        if palette is not None:
            image = Image.fromarray(np.asarray(pixels, np.uint8), "P")
            image.putpalette([channel for colour in palette for channel in colour])
        image.save(path)

    return write


@pytest.fixture
def convert(ray_cluster, tmp_path):
    """Function that converts a listing and returns the class names and the ids (H, W) of each row."""
    del ray_cluster

    def run(listing, **options):
        manifest = convert_dataset(listing, str(tmp_path / "out"), **options)
        shards = [shard.path for split in manifest.splits.values() for shard in split.shards]
        rows = [row for path in shards for row in pq.read_table(tmp_path / "out" / path).to_pylist()]
        return manifest.classes.names, {row["id"]: decode_mask(row["mask"]).tolist() for row in rows}

    return run
