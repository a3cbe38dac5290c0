"""Images whose pixels tell their ids, and rows as the parquet holds them."""

import cv2
import numpy as np
import pytest

from segray.data.images import encode_mask


@pytest.fixture(scope="session")
def scene():
    """A function of height and width: blocks of five classes, and an image that shows them as greys."""

    def draw(height, width):
        blocks = np.random.default_rng(0).integers(0, 5, (height // 8 + 1, width // 8 + 1))
        mask = np.kron(blocks, np.ones((8, 8)))[:height, :width].astype(np.uint8)
        return np.stack([mask * 40 + 10] * 3, axis=-1).astype(np.uint8), mask

    return draw


@pytest.fixture(scope="session")
def encoded():
    """A function of image and mask: their bytes."""

    def encode(image, mask, kind=".png", *flags):
        _, found = cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), list(flags))
        return found.tobytes(), encode_mask(mask)

    return encode
