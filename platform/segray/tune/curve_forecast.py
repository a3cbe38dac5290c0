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


def extrapolate_curve(steps: Sequence[int], values: Sequence[float], last: int) -> float:
    """Returns the expected value of a curve at the last step.

    A curve with fewer than `MIN_POINTS` points is not extrapolated: its last value is returned.

    Args:
        steps: steps of the measurements, ascending.
        values: measured values, higher or lower is better.
        last: last step of the run.
    """
    if len(steps) < MIN_POINTS or steps[-1] >= last:
        return values[-1]
    found = np.asarray(values, np.float64)[:, None]
    rises, end = _rises(np.asarray(steps, np.float64), last), _rises(np.array([float(last)]), last)[0]
    is_score = bool(((found >= 0) & (found <= 1)).all())
    middle, shift = (
        (0.0, 0.0) if is_score else (found.mean(0), rises.mean(0))
    )  # a score starts at 0, a loss at any value
    levels = ((rises - shift) * (found - middle)).sum(0) / ((rises - shift) ** 2).sum(0)
    ends = middle + levels * (end - shift)
    misses = ((found - middle - (rises - shift) * levels) ** 2).sum(0)
    noise = max(float(misses.min()) / max(len(steps) - 2, 1), MIN_NOISE**2)
    weights = np.exp(-(misses - misses.min()) / (2 * noise))
    if is_score:
        weights *= (ends >= 0) & (ends <= 1)
    if not weights.any():
        return values[-1]
    weights /= weights.sum()
    return float((weights * ends).sum())


def _rises(steps: NDArray[np.float64], last: int) -> NDArray[np.float64]:
    """Returns the fraction of its level that the model reaches, as an array of shape (steps, times)."""
    return 1 - np.exp(-steps[:, None] / (TIMES * last))
