"""Sizes: sides rounded up for evaluation, masks never mixed, fine patterns kept when shrinking far."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.data.resize import model_input_size, resize_for_model, resize_image, resize_mask, scale_to_short_side


@pytest.mark.parametrize(
    ("size", "short_side", "align", "expected"),
    [
        ((360, 480), None, 32, (384, 480)),
        ((360, 480), 192, 32, (192, 256)),
        ((512, 683), 512, 32, (512, 704)),
        ((97, 131), None, 1, (97, 131)),
    ],
)
def test_evaluation_sizes_are_rounded_up(size, short_side, align, expected):
    assert model_input_size(*size, short_side, align) == expected
    assert resize_for_model(np.zeros((*size, 3), np.uint8), short_side, align).shape[:2] == expected


def test_shrinking_far_keeps_the_mean_of_a_fine_pattern():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 200
    assert resize_image(image, 16, 16).mean() == pytest.approx(50, abs=1)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([np.uint8, np.uint16]))
def test_a_resized_mask_holds_no_new_id(height, width, dtype):
    mask = np.random.default_rng(0).choice([0, 3, 200], (31, 47)).astype(dtype)
    made = resize_mask(mask, height, width)
    assert made.shape == (height, width)
    assert made.dtype == dtype
    assert set(np.unique(made)) <= {0, 3, 200}


def test_the_short_side_is_the_one_that_is_set():
    assert scale_to_short_side(300, 400, 150) == (150, 200)
    assert scale_to_short_side(400, 300, 600) == (800, 600)
