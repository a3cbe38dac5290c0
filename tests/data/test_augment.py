"""Crops: the right size and type, seeded by the row alone, masks never mixed, padding as published."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray import config
from segray.data.augment import PAD_COLOUR, Augment, fit_to_model, model_size, resize_image


def settings_of(**data):
    return config.build({f"data.{name}": value for name, value in data.items()}).data


def scene(height, width, classes=5, seed=0):
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (height // 8 + 1, width // 8 + 1))
    mask = np.kron(blocks, np.ones((8, 8)))[:height, :width].astype(np.uint8)
    image = np.stack([mask * 40 + 10] * 3, axis=-1).astype(np.uint8)
    return image, mask


@settings(deadline=None, max_examples=40)
@given(st.integers(33, 200), st.integers(33, 200), st.integers(0, 2**31), st.sampled_from([None, 64]))
def test_a_crop_has_its_size_and_no_class_that_was_not_there(height, width, seed, short_side):
    image, mask = scene(height, width)
    crop = Augment(settings_of(crop=96, short_side=short_side), 255)(image, mask, seed)
    assert crop[0].shape == (96, 96, 3)
    assert crop[0].dtype == np.uint8
    assert crop[1].shape == (96, 96)
    assert set(np.unique(crop[1])) <= set(np.unique(mask)) | {255}


def test_image_and_mask_are_cut_alike():
    image, mask = scene(120, 160)
    augment = Augment(settings_of(crop=64, photometric=False, scale_min=1, scale_max=1), 255)
    for seed in range(20):
        cropped, ids = augment(image, mask, seed)
        assert np.array_equal(cropped[..., 0], ids * 40 + 10)


def test_the_seed_alone_decides_also_on_many_threads():
    image, mask = scene(120, 160)
    augment = Augment(settings_of(crop=64), 255)
    once = [augment(image, mask, seed) for seed in range(50)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: augment(image, mask, seed), range(50)))
    for (image_a, mask_a), (image_b, mask_b) in zip(once, again, strict=True):
        assert np.array_equal(image_a, image_b)
        assert np.array_equal(mask_a, mask_b)
    assert not all(np.array_equal(once[0][0], other) for other, _ in once[1:])


def test_a_small_image_is_padded_with_the_mean_colour_and_the_ignore_id():
    image, mask = scene(40, 40)
    augment = Augment(settings_of(crop=96, photometric=False, flip=0, scale_min=1, scale_max=1), 65535)
    cropped, ids = augment(image, mask.astype(np.uint16), 0)
    assert tuple(cropped[-1, -1]) == PAD_COLOUR
    assert ids[-1, -1] == 65535
    assert ids.dtype == np.uint16
    assert np.array_equal(ids[:40, :40], mask)


def test_a_crop_of_one_class_is_drawn_again():
    image, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8)
    mask[96:160, 96:160] = 1
    varied = Augment(settings_of(crop=64, scale_min=1, scale_max=1, cat_max_ratio=0.75), 255)
    plain = Augment(settings_of(crop=64, scale_min=1, scale_max=1, cat_max_ratio=1.0), 255)

    def share(augment):
        return np.mean([augment(image, mask, seed)[1].any() for seed in range(200)])

    assert share(varied) > share(plain) + 0.2


def test_flip_and_photometric_happen_as_often_as_set():
    image, mask = scene(64, 64)
    image = np.stack([mask * 40 + 10, 255 - mask * 40, np.full_like(mask, 90)], axis=-1)
    still = settings_of(crop=64, scale_min=1, scale_max=1, flip=0, photometric=False, cat_max_ratio=1.0)
    assert all(np.array_equal(Augment(still, 255)(image, mask, seed)[0], image) for seed in range(20))
    flips = Augment(still.model_copy(update={"flip": 0.5}), 255)
    turned = sum(np.array_equal(flips(image, mask, seed)[1], mask[:, ::-1]) for seed in range(200))
    assert 70 < turned < 130
    colours = Augment(still.model_copy(update={"photometric": True}), 255)
    same = sum(np.array_equal(colours(image, mask, seed)[0], image) for seed in range(200))
    assert 0 < same < 40  # one in sixteen stays as it was


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
    assert model_size(*size, short_side, align) == expected
    assert fit_to_model(np.zeros((*size, 3), np.uint8), short_side, align).shape[:2] == expected


def test_shrinking_far_keeps_the_mean_of_a_fine_pattern():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 200
    assert resize_image(image, 16, 16).mean() == pytest.approx(50, abs=1)
