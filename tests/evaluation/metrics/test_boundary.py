"""Counts near contours against a loop over pixels and their neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.evaluation.metrics.boundary import boundary_counts, contour_band, trimap_counts

IGNORE = 255
OUTSIDE = -1


def near(ids, width, edges):
    height, length = ids.shape
    found = np.zeros(ids.shape, bool)
    for row in range(height):
        for column in range(length):
            for down in range(-width, width + 1):
                for across in range(-width, width + 1):
                    y, x = row + down, column + across
                    inside = 0 <= y < height and 0 <= x < length
                    other = ids[y, x] if inside else (OUTSIDE if edges else ids[row, column])
                    found[row, column] |= other != ids[row, column]
    return found


@st.composite
def pictures(draw):
    height, length, classes = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    ids = st.lists(st.integers(0, classes - 1), min_size=height * length, max_size=height * length)
    found, truth = (np.array(draw(ids)).reshape(height, length) for _ in range(2))
    for index in draw(st.lists(st.integers(0, height * length - 1), max_size=5)):
        truth.reshape(-1)[index] = IGNORE
    return classes, truth, found


@settings(deadline=None, max_examples=60)
@given(pictures(), st.integers(1, 4), st.booleans())
def test_what_is_near_a_contour_has_another_id_around_it(case, width, edges):
    _, truth, _ = case
    assert np.array_equal(contour_band(torch.from_numpy(truth), width, edges=edges).numpy(), near(truth, width, edges))


@settings(deadline=None, max_examples=60)
@given(pictures(), st.integers(1, 3))
def test_boundary_iou_is_that_of_each_classs_own_band(case, width):
    """As its authors define it, a class at a time: the pixels of a mask that an erosion takes away."""
    classes, truth, found = case
    table = boundary_counts(torch.from_numpy(found), torch.from_numpy(truth), classes, IGNORE, width).numpy()
    for one in range(classes):
        masks = [(ids == one) & (truth != IGNORE) for ids in (truth, found)]
        bands = [mask & near(mask, width, edges=True) for mask in masks]
        assert table[one].tolist() == [(bands[0] & bands[1]).sum(), bands[0].sum(), bands[1].sum()]


@settings(deadline=None, max_examples=60)
@given(pictures(), st.integers(1, 3))
def test_a_trimap_is_the_band_around_the_truths_contours(case, width):
    classes, truth, found = case
    table = trimap_counts(torch.from_numpy(found), torch.from_numpy(truth), classes, IGNORE, width).numpy()
    band = near(truth, width, edges=False) & (truth != IGNORE)
    for one in range(classes):
        true, said = band & (truth == one), band & (found == one)
        assert table[one].tolist() == [(true & said).sum(), true.sum(), said.sum()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type_will_do(dtype):
    truth = torch.tensor([[0, 0, 1, 1]] * 3, dtype=dtype)
    assert trimap_counts(truth, truth, 2, IGNORE, 1).tolist() == [[3, 3, 3], [3, 3, 3]]
