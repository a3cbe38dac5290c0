"""Mosaic and cut-mix: pixels and ids travel together, from the rows they should."""

from random import Random

import numpy as np
import pytest

from segray import config
from segray.data.augment.augmenter import Augmenter
from segray.data.augment.mixing import cut_mix, mosaic

SIDE = 32


def flat(value):
    return np.full((SIDE, SIDE, 3), value, np.uint8), np.full((SIDE, SIDE), value, np.uint8)


@pytest.mark.parametrize("seed", range(20))
def test_a_mosaic_has_a_quarter_of_each_around_a_middle(seed):
    image, mask = mosaic([flat(value) for value in range(4)], Random(seed))
    assert np.array_equal(image[..., 0], mask)
    assert (mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]) == (0, 1, 2, 3)
    shares = np.bincount(mask.reshape(-1)) / SIDE**2
    assert min(shares) >= 1 / 16


def test_cut_mix_pastes_a_box_of_any_size():
    shares = []
    for seed in range(400):
        image, mask = cut_mix(flat(1), flat(2), Random(seed))
        assert np.array_equal(image[..., 0], mask)
        ys, xs = np.nonzero(mask == 2)
        if len(ys):
            assert (mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] == 2).all()
        shares.append((mask == 2).mean())
    assert min(shares) < 0.02
    assert max(shares) > 0.6  # what reaches over the border is cut off
    assert 0.2 < np.mean(shares) < 0.5


def test_the_originals_stay_as_they_were():
    crops = [flat(value) for value in range(4)]
    mosaic(crops, Random(0))
    cut_mix(crops[0], crops[1], Random(0))
    assert all((image == value).all() and (mask == value).all() for value, (image, mask) in enumerate(crops))


def test_rows_are_mixed_as_often_as_set():
    data = config.build({"data.mosaic": 0.25, "data.cut_mix": 0.5}).data
    counts = np.bincount([Augmenter(data, 255).num_mix_partners(seed) for seed in range(4000)], minlength=4) / 4000
    assert counts == pytest.approx([0.375, 0.375, 0, 0.25], abs=0.03)
