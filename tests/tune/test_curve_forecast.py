"""Forecasts of learning curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.tune.curve_forecast import extrapolate_curve


def curve(level, time, steps):
    return [level * (1 - np.exp(-step / time)) for step in steps]


@pytest.mark.parametrize(("level", "time"), [(0.8, 100), (0.6, 300), (0.3, 50), (0.9, 700)])
def test_a_saturating_curve_is_extrapolated(level, time):
    steps = range(20, 320, 20)
    forecast = extrapolate_curve(list(steps), curve(level, time, steps), 1000)
    assert forecast == pytest.approx(curve(level, time, [1000])[0], abs=0.02)


def test_a_slow_curve_with_a_higher_level_has_a_higher_forecast():
    steps = range(10, 160, 10)
    fast, slow = curve(0.60, 80, steps), curve(0.73, 250, steps)
    assert fast[-1] > slow[-1] + 0.1
    assert extrapolate_curve(list(steps), fast, 1000) < extrapolate_curve(list(steps), slow, 1000) - 0.05


def test_more_points_give_a_better_forecast():
    random, steps = np.random.default_rng(0), [range(10, last, 10) for last in (60, 110, 210, 410)]
    end = curve(0.7, 200, [1000])[0]

    def error(steps_so_far):
        noisy = np.array(curve(0.7, 200, steps_so_far)) + random.normal(0, 0.005, len(steps_so_far))
        return abs(extrapolate_curve(list(steps_so_far), noisy.tolist(), 1000) - end)

    errors = [np.mean([error(steps_so_far) for _ in range(20)]) for steps_so_far in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 < errors[0]


def test_a_curve_with_few_points_keeps_its_last_value():
    assert extrapolate_curve([10, 20, 30], [0.1, 0.3, 0.2], 100) == 0.2
    assert extrapolate_curve([10, 20, 30, 40, 100], [0.1, 0.3, 0.2, 0.5, 0.4], 100) == 0.4


def test_a_falling_loss_is_extrapolated():
    steps = range(10, 210, 10)
    falling = [-(0.5 + 1.5 * np.exp(-step / 100)) for step in steps]  # the higher, the better
    forecast = extrapolate_curve(list(steps), falling, 1000)
    assert -0.6 < forecast < -0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_forecast_of_a_score_is_a_score(values):
    forecast = extrapolate_curve(range(10, 10 * len(values) + 10, 10), values, 1000)
    assert 0 <= forecast <= 1
