"""Estimates of the storage of a run or a sweep."""

import pytest

from segray import config
from segray.training import footprint
from segray.training.diagnose import PLACEHOLDER_CLASSES

VARIANTS = {"tune.space": {"model.variant": {"choice": ["b1", "b0"]}}}


def test_a_sweep_over_variants_reduces_the_largest_gradients_and_stores_the_mean_checkpoint():
    alone = [config.build({"model.variant": name}) for name in ("b0", "b1")]
    b0, b1 = (footprint.gradient_bytes(one, PLACEHOLDER_CLASSES) for one in alone)
    assert b1 > 3 * b0
    assert footprint.gradient_bytes(config.build(VARIANTS), PLACEHOLDER_CLASSES) == b1
    stored = [footprint.checkpoint_bytes(one, PLACEHOLDER_CLASSES) for one in alone]
    assert stored == [4 * b0, 4 * b1]  # weights, two moments, the moving average
    assert footprint.checkpoint_bytes(config.build(VARIANTS), PLACEHOLDER_CLASSES) == sum(stored) // 2


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, 1),
        (VARIANTS | {"tune.trials": 7}, 7),
        (VARIANTS | {"tune.trials": 7, "tune.search": "grid"}, 2),
        (VARIANTS | {"tune.trials": 7, "tune.search": "grid", "tune.seeds": 3}, 5),
    ],
)
def test_each_run_of_a_sweep_keeps_its_checkpoints(settings, runs):
    assert footprint.num_kept_checkpoints(config.build(settings | {"train.keep_best": 1})) == 3 * runs
