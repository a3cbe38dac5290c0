"""Where a learning curve is going: trials of a sweep are compared by their end rather than by their start.

Good settings often start slowly: a large model is behind a small one for half of the run, a careful rate behind a bold
one. Compared by what they have reached, they would be stopped. So a curve is carried on to the run's last step as what
rises towards a level, level * (1 - exp(-step / time)): for each of many times the level that fits best, weighed by how
well it fits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 4

TIMES = np.geomspace(0.02, 5, 60)
"""Of the rise, as shares of the whole run."""

MIN_NOISE = 1e-3


def extrapolate_curve(steps: Sequence[int], values: Sequence[float], last: int) -> float:
    """Returns where a curve ends.

    Args:
        steps: at which it was measured, ascending.
        values: that were found; the higher, the better, or the other way round.
        last: step of the end.
    """
    if len(steps) < MIN_POINTS or steps[-1] >= last:
        return values[-1]
    found = np.asarray(values, np.float64)[:, None]
    rises, end = _rises(np.asarray(steps, np.float64), last), _rises(np.array([float(last)]), last)[0]
    is_score = bool(((found >= 0) & (found <= 1)).all())
    middle, shift = (0.0, 0.0) if is_score else (found.mean(0), rises.mean(0))  # a score begins at 0, a loss anywhere
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
    """Returns which share of its level each curve has reached, (steps, times)."""
    return 1 - np.exp(-steps[:, None] / (TIMES * last))
