"""Photometric distortion: each part as published, drawn as often as published, all in uint8."""

from random import Random

import cv2
import numpy as np
import pytest

from segray.data.augment.colour import Distortion, apply_distortion, sample_distortion

IDENTITY = Distortion(0, 1.0, True, 1.0, 0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_an_identity_distortion_changes_nothing(image):
    assert np.array_equal(apply_distortion(image, IDENTITY), image)


@pytest.mark.parametrize("brightness", [-32, -5, 7, 32])
@pytest.mark.parametrize("contrast", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("contrast_first", [True, False])
def test_brightness_is_added_and_contrast_multiplied_with_clipping(image, brightness, contrast, contrast_first):
    distorted = apply_distortion(image, Distortion(brightness, contrast, contrast_first, 1.0, 0))
    expected = np.clip(np.clip(image.astype(float) + brightness, 0, 255) * contrast, 0, 255)
    assert np.abs(distorted - expected).max() <= 0.51  # rounded


@pytest.mark.parametrize(("saturation", "hue_degrees"), [(0.5, 0), (1.5, 0), (1.0, 30), (0.7, -30)])
def test_saturation_and_hue_match_floating_point_hsv(image, saturation, hue_degrees):
    distorted = apply_distortion(image, Distortion(0, 1.0, True, saturation, round(hue_degrees * 256 / 360)))
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + round(hue_degrees * 256 / 360) * 360 / 256) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    assert np.abs(distorted - expected).mean() < 1.5  # 256 levels of hue and saturation
    assert np.abs(distorted - expected).max() <= 10


def test_the_order_of_contrast_and_saturation_matters(image):
    first, last = (apply_distortion(image, Distortion(0, 1.5, order, 0.5, 0)) for order in (True, False))
    assert not np.array_equal(first, last)


def test_each_distortion_is_sampled_half_of_the_time_and_in_range():
    samples = [sample_distortion(Random(seed)) for seed in range(2000)]
    for part, idle in (("brightness", 0), ("contrast", 1.0), ("saturation", 1.0), ("contrast_first", False)):
        assert 900 < sum(getattr(one, part) != idle for one in samples) < 1100, part
    assert {one.hue for one in samples} == set(range(-26, 27))
    assert {one.brightness for one in samples} == set(range(-32, 33))
    assert all(0.5 <= one.contrast <= 1.5 and 0.5 <= one.saturation <= 1.5 for one in samples)
