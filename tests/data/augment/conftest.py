"""Images whose pixels encode their class ids, and rows in their stored form."""

import cv2
import numpy as np
import pytest

from segray.data.images import encode_mask


@pytest.fixture(scope="session")
def scene():
    """Function that returns an image and a mask with blocks of five classes; the grey value encodes the class."""

    def draw(height, width):
        blocks = np.random.default_rng(0).integers(0, 5, (height // 8 + 1, width // 8 + 1))
        mask = np.kron(blocks, np.ones((8, 8)))[:height, :width].astype(np.uint8)
        return np.stack([mask * 40 + 10] * 3, axis=-1).astype(np.uint8), mask

    return draw


@pytest.fixture(scope="session")
def encoded():
    """Function that encodes an image and a mask as a row."""

    def encode(image, mask, kind=".png", *flags):
        _, buffer = cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), list(flags))
        return buffer.tobytes(), encode_mask(mask)

    return encode
