"""Confidence in bins against torchmetrics and a loop, and its independence of order."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segray.evaluation.metrics.calibration import NUM_BINS, UNIT, calibration_bins, compute_calibration

IGNORE = 255


def random_pixels(seed, count=5000, classes=5):
    random = torch.Generator().manual_seed(seed)
    probabilities = (torch.randn(count, classes, generator=random) * 2).softmax(1)
    sure, found = probabilities.max(1)
    truth = torch.randint(0, classes, (count,), generator=random)
    truth = torch.where(torch.rand(count, generator=random) < 0.5, found, truth)
    truth[torch.rand(count, generator=random) < 0.1] = IGNORE
    return probabilities, sure, found, truth


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_torchmetrics(seed):
    probabilities, sure, found, truth = random_pixels(seed)
    result = compute_calibration(calibration_bins(found, sure, truth, IGNORE).numpy())
    for norm, ours in (("l1", result.ece), ("max", result.mce)):
        expected = multiclass_calibration_error(
            probabilities, truth, 5, n_bins=NUM_BINS, norm=norm, ignore_index=IGNORE
        )
        assert ours == pytest.approx(float(expected), abs=3e-5)  # confidence is counted in steps of 1/65536


def test_bins_add_up_in_any_order():
    _, sure, found, truth = random_pixels(9)
    whole = calibration_bins(found, sure, truth, IGNORE)
    order = torch.randperm(len(truth))
    parts = [calibration_bins(found[some], sure[some], truth[some], IGNORE) for some in order.chunk(7)]
    assert torch.equal(sum(parts), whole)
    assert int(whole[:, 0].sum()) == int((truth != IGNORE).sum())
    assert int(whole[:, 1].sum()) == int(((truth == found) & (truth != IGNORE)).sum())


def test_a_sure_pixel_is_in_the_last_bin_and_empty_bins_have_no_figures():
    bins = calibration_bins(torch.tensor([1, 1]), torch.tensor([1.0, 1.0]), torch.tensor([1, 0]), IGNORE).numpy()
    assert bins[-1].tolist() == [2, 1, 2 * UNIT]
    result = compute_calibration(bins)
    assert (result.ece, result.mce) == (0.5, 0.5)
    assert result.accuracy == (*[None] * (NUM_BINS - 1), 0.5)
    empty = compute_calibration(np.zeros((NUM_BINS, 3), np.int64))
    assert (empty.ece, set(empty.accuracy)) == (0.0, {None})
