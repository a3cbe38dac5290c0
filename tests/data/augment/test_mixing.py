"""Mosaic and CutMix combine the images and the masks of several crops alike."""

from random import Random

import numpy as np
import pytest

from segray import config
from segray.data.augment.augmenter import Augmenter
from segray.data.augment.mixing import CutMix, Mosaic

SIDE = 32


def flat(value):
    return np.full((SIDE, SIDE, 3), value, np.uint8), np.full((SIDE, SIDE), value, np.uint8)


@pytest.mark.parametrize("seed", range(20))
def test_mosaic_has_one_quarter_of_each_crop(seed):
    image, mask = Mosaic.sample(SIDE, Random(seed)).apply([flat(value) for value in range(4)])
    assert np.array_equal(image[..., 0], mask)
    assert (mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]) == (0, 1, 2, 3)
    shares = np.bincount(mask.reshape(-1)) / SIDE**2
    assert min(shares) >= 1 / 16


def test_cut_mix_pastes_a_box_of_any_size():
    shares = []
    for seed in range(400):
        image, mask = CutMix.sample(SIDE, Random(seed)).apply([flat(1), flat(2)])
        assert np.array_equal(image[..., 0], mask)
        ys, xs = np.nonzero(mask == 2)
        if len(ys):
            assert (mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] == 2).all()
        shares.append((mask == 2).mean())
    assert min(shares) < 0.02
    assert max(shares) > 0.6  # the part outside the crop is cut off
    assert 0.2 < np.mean(shares) < 0.5


def test_mixing_does_not_change_its_inputs():
    crops = [flat(value) for value in range(4)]
    Mosaic.sample(SIDE, Random(0)).apply(crops)
    CutMix.sample(SIDE, Random(0)).apply(crops[:2])
    assert all((image == value).all() and (mask == value).all() for value, (image, mask) in enumerate(crops))


def test_mixing_frequencies_match_the_settings():
    data = config.build({"data.mosaic_prob": 0.25, "data.cut_mix_prob": 0.5}).data
    augmenter = Augmenter(data, 255)
    counts = np.bincount([augmenter.draw(seed).num_partners for seed in range(4000)], minlength=4) / 4000
    assert counts == pytest.approx([0.375, 0.375, 0, 0.25], abs=0.03)
