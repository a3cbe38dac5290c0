"""Resizing of images and masks, and the model input of an image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segray.core.errors import DataError
from segray.data.images import resize_image, resize_mask, scale_to_short_side
from segray.data.preprocess import model_input_size, preprocess, require_input_limits


@pytest.mark.parametrize(
    ("size", "short_side", "size_multiple", "expected"),
    [
        ((360, 480), None, 32, (384, 480)),
        ((360, 480), 192, 32, (192, 256)),
        ((512, 683), 512, 32, (512, 704)),
        ((97, 131), None, 1, (97, 131)),
    ],
)
def test_model_input_sides_are_rounded_up(size, short_side, size_multiple, expected):
    assert model_input_size(*size, short_side, size_multiple) == expected
    assert preprocess(np.zeros((*size, 3), np.uint8), short_side, size_multiple).shape == (1, 3, *expected)


def test_model_input_is_channels_last_uint8_and_not_normalized():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    batch = preprocess(image, None, 32)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), image)


def test_only_prediction_limits_the_model_input_of_narrow_images():
    image = np.zeros((10, 21_000, 3), np.uint8)  # validation at the end of a long training must not fail because of it
    assert preprocess(image, 96, 32).shape == (1, 3, 96, 201_600)
    with pytest.raises(DataError, match="the image is 21000x10; data.short_side 96 enlarges it to 201600x96"):
        require_input_limits(image, 96, 32)


def test_downscaling_below_half_averages_fine_patterns():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 200
    assert resize_image(image, 16, 16).mean() == pytest.approx(50, abs=1)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([np.uint8, np.uint16]))
def test_a_resized_mask_has_no_new_ids(height, width, dtype):
    mask = np.random.default_rng(0).choice([0, 3, 200], (31, 47)).astype(dtype)
    resized = resize_mask(mask, height, width)
    assert resized.shape == (height, width)
    assert resized.dtype == dtype
    assert set(np.unique(resized)) <= {0, 3, 200}


def test_the_shorter_side_gets_the_given_length():
    assert scale_to_short_side(300, 400, 150) == (150, 200)
    assert scale_to_short_side(400, 300, 600) == (800, 600)
