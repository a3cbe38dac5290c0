"""Extrapolation of learning curves: schedulers compare trials by their expected final values.

Good settings often start slowly. A large model can trail a small one for half of a run, and a low learning rate can
trail a high one. A comparison of current values would stop such trials. This module extrapolates a curve to the last
step with the model `level * (1 - exp(-step / time))`. For each of many values of `time` it fits the best level. The
forecast is the average of these fits, weighted by their goodness of fit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 4
TIMES = np.geomspace(0.02, 5, 60)
"""Time constants of the model, as fractions of the run."""
MIN_NOISE = 1e-3


def extrapolate_curve(steps: Sequence[int], values: Sequence[float], last_step: int) -> float:
    """Returns the expected value of a curve at the last step.

    A curve with fewer than `MIN_POINTS` points is not extrapolated: its last value is returned.

    Args:
        steps: steps of the measurements, ascending.
        values: measured values, higher or lower is better.
        last_step: last step of the run.
    """
    if len(steps) < MIN_POINTS or steps[-1] >= last_step:
        return values[-1]
    y = np.asarray(values, np.float64)[:, None]
    x, x_end = _saturation(steps, last_step), _saturation([last_step], last_step)[0]
    is_score = bool(((y >= 0) & (y <= 1)).all())
    x_mean, y_mean = (0.0, 0.0) if is_score else (x.mean(0), y.mean(0))  # a score starts at 0, a loss at any value
    levels = ((x - x_mean) * (y - y_mean)).sum(0) / ((x - x_mean) ** 2).sum(0)  # least squares for each time constant
    forecasts = y_mean + levels * (x_end - x_mean)
    errors = ((y - y_mean - (x - x_mean) * levels) ** 2).sum(0)
    variance = max(float(errors.min()) / max(len(steps) - 2, 1), MIN_NOISE**2)
    weights = np.exp(-(errors - errors.min()) / (2 * variance))
    if is_score:
        weights *= (forecasts >= 0) & (forecasts <= 1)
    if not weights.any():
        return values[-1]
    weights /= weights.sum()
    return float((weights * forecasts).sum())


def _saturation(steps: Sequence[int], last_step: int) -> NDArray[np.float64]:
    """Returns the fraction of its level that the model reaches, as an array of shape (steps, time constants)."""
    return 1 - np.exp(-np.asarray(steps, np.float64)[:, None] / (TIMES * last_step))
