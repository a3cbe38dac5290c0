"""What a run or a sweep stores, before there is any of it."""

import pytest

from segray import config
from segray.doctor import storing
from segray.doctor.examine import UNKNOWN

VARIANTS = {"tune.space": {"model.variant": {"choice": ["b1", "b0"]}}}


def test_a_sweep_over_variants_stores_as_much_as_the_largest():
    b0, b1 = (storing.parameter_bytes(config.build({"model.variant": name}), UNKNOWN) for name in ("b0", "b1"))
    assert b1 > 3 * b0
    assert storing.parameter_bytes(config.build(VARIANTS), UNKNOWN) == b1


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
    assert storing.kept(config.build(settings | {"train.keep_best": 1})) == 3 * runs
