"""Resizing of images and masks, and the model input of an image."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segray.config import DataConfig
from segray.core.errors import DataError
from segray.data.augment.albumentations_pipeline import AlbumentationsPipeline
from segray.data.augment.crop import CropRule, sample_window
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


@pytest.mark.parametrize(
    ("size", "expected"),  # of mmcv's imrescale to (2048, 512), which the published recipe uses
    [((200, 2000), (205, 2048)), ((2000, 200), (2048, 205)), ((100, 20_000), (10, 2048)), ((512, 2048), (512, 2048))],
)
def test_the_long_side_is_at_most_four_times_the_short_side_in_training_and_evaluation(size, expected):
    assert scale_to_short_side(*size, 512) == expected
    assert model_input_size(*size, 512, 1) == pytest.approx(expected, abs=1)
    rule = CropRule(crop=4096, scale=(1, 1), short_side=512, cat_max_ratio=1, class_crop_prob=0, ignore_id=255)
    window = sample_window(rule, np.zeros(size, np.uint8), Random(0))
    assert (window.to_height, window.to_width) == pytest.approx(expected, abs=3)  # the window has whole source pixels
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    pipeline = AlbumentationsPipeline(DataConfig(short_side=512, augment=["ScaledCrop"]), 255)
    assert pipeline._resize(image, resize_image).shape[:2] == pipeline._resize(mask, resize_mask).shape == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1024), st.sampled_from([1, 32]))
def test_the_model_input_of_every_image_is_bounded_by_the_short_side(height, width, short_side, size_multiple):
    sides = model_input_size(height, width, short_side, size_multiple)
    assert min(sides) < short_side + size_multiple
    assert max(sides) < 4 * short_side + size_multiple
    assert min(sides) >= short_side or max(sides) >= 4 * short_side


def test_an_image_that_is_enlarged_beyond_the_limit_is_an_error_of_prediction_alone():
    image = np.zeros((100, 120, 3), np.uint8)  # validation at the end of a long training must not fail because of it
    assert model_input_size(100, 120, 5000, 32) == (5024, 6016)
    with pytest.raises(DataError, match="the image is 120x100; data.short_side 5000 .* enlarge it to 6016x5024"):
        require_input_limits(image, 5000, 32)
    require_input_limits(np.zeros((10, 21_000, 3), np.uint8), 96, 32)


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
