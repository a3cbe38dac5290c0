"""Where a curve is going."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.tune.curve_forecast import extrapolate_curve


def curve(level, time, steps):
    return [level * (1 - np.exp(-step / time)) for step in steps]


@pytest.mark.parametrize(("level", "time"), [(0.8, 100), (0.6, 300), (0.3, 50), (0.9, 700)])
def test_a_curve_that_rises_towards_a_level_is_carried_on(level, time):
    steps = range(20, 320, 20)
    found = extrapolate_curve(list(steps), curve(level, time, steps), 1000)
    assert found == pytest.approx(curve(level, time, [1000])[0], abs=0.02)


def test_the_slow_one_that_will_be_better_is_told_from_the_fast_one():
    steps = range(10, 160, 10)
    fast, slow = curve(0.60, 80, steps), curve(0.73, 250, steps)
    assert fast[-1] > slow[-1] + 0.1
    assert extrapolate_curve(list(steps), fast, 1000) < extrapolate_curve(list(steps), slow, 1000) - 0.05


def test_the_more_points_the_nearer_to_the_end():
    random, steps = np.random.default_rng(0), [range(10, last, 10) for last in (60, 110, 210, 410)]
    end = curve(0.7, 200, [1000])[0]

    def miss(one):
        noisy = np.array(curve(0.7, 200, one)) + random.normal(0, 0.005, len(one))
        return abs(extrapolate_curve(list(one), noisy.tolist(), 1000) - end)

    misses = [np.mean([miss(one) for _ in range(20)]) for one in steps]
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < 0.02 < misses[0]


def test_of_few_points_the_last_counts():
    assert extrapolate_curve([10, 20, 30], [0.1, 0.3, 0.2], 100) == 0.2
    assert extrapolate_curve([10, 20, 30, 40, 100], [0.1, 0.3, 0.2, 0.5, 0.4], 100) == 0.4


def test_a_loss_that_falls_is_carried_on_too():
    steps = range(10, 210, 10)
    falling = [-(0.5 + 1.5 * np.exp(-step / 100)) for step in steps]  # the higher, the better
    found = extrapolate_curve(list(steps), falling, 1000)
    assert -0.6 < found < -0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_score_stays_one(values):
    found = extrapolate_curve(range(10, 10 * len(values) + 10, 10), values, 1000)
    assert 0 <= found <= 1
