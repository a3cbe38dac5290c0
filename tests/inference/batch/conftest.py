"""Images of many kinds."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pixels(seed, height=40, width=52):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """40 images in folders, in three formats and two sizes; one stands on its side, and two cannot be read."""
    root = tmp_path_factory.mktemp("images")
    for number in range(39):
        suffix = ("jpg", "png", "webp")[number % 3]
        path = root / f"cam{number % 2}" / "deep" / f"{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 40 + number % 2 * 8)).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(99)).save(root / "turned.jpg", exif=exif)
    (root / "cam0/deep/004.png").write_bytes(b"none")
    whole = (root / "cam0/deep/006.jpg").read_bytes()
    (root / "cam0/deep/006.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"none")
    return root


@pytest.fixture
def images(drawn, tmp_path):
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "images"))
