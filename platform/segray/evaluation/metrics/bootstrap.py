"""How far scores could have been otherwise with other images: bootstrap over images, alone and in pairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray.evaluation.metrics.confusion import ClassCounts
from segray.evaluation.metrics.scores import AbsentPolicy, Ratios, class_mean, iou

NUM_RESAMPLES = 2000
CONFIDENCE_LEVEL = 0.95
RESAMPLE_BATCH = 2**24  # weights that are held together

Statistic = Callable[[Any], Ratios]
"""From tables (D, K, 3) of as many draws to (D,) or (D, K) figures."""


class Interval(NamedTuple):
    """A percentile interval.

    Attributes:
        low, high: its ends; none where hardly a draw defines the figure.
    """

    low: float
    high: float


def miou(table: ClassCounts, absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean IoU (...) of tables (..., K, 3)."""
    return class_mean(iou(table), table.sum(axis=-1) > 0, absent)


def miou_and_ious(table: ClassCounts, absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean IoU and that of each class (..., 1 + K) of tables (..., K, 3)."""
    return np.concatenate([miou(table, absent)[..., None], iou(table)], axis=-1)


def sum_by_group(figures: NDArray[Any], rows: Sequence[int], groups: Mapping[int, str] | None) -> NDArray[Any]:
    """Returns the figures (N, ...) of images summed by group (G, ...): frames of a video are not independent.

    Args:
        figures: of each image.
        rows: their numbers.
        groups: of each row; none keeps every image by itself.
    """
    if groups is None:
        return figures
    names = sorted({groups[row] for row in rows})
    place = {name: index for index, name in enumerate(names)}
    total = np.zeros((len(names), *figures.shape[1:]), figures.dtype)
    np.add.at(total, [place[groups[row]] for row in rows], figures)
    return total


def bootstrap(tables: ClassCounts | Ratios, statistic: Statistic, count: int = NUM_RESAMPLES, seed: int = 0) -> Ratios:
    """Returns a statistic of `count` samples of the images, drawn with replacement.

    Args:
        tables: (N, K, 3) of each image, or other figures that add up.
        statistic: of their sum.
        count: of samples.
        seed: the same draws the same images; give two models' tables the same seed to compare them in pairs.
    """
    flat = tables.reshape(len(tables), -1).astype(np.float64)
    parts = [weights @ flat for weights in _weights(len(tables), count, seed)]
    return statistic(np.concatenate(parts).reshape(count, *tables.shape[1:]))


def _weights(images: int, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields how often each image is drawn, (some samples, N)."""
    random = np.random.default_rng(seed)
    step = max(1, RESAMPLE_BATCH // images)
    for first in range(0, count, step):
        some = min(step, count - first)
        yield random.multinomial(images, np.full(images, 1 / images), size=some).astype(np.float64)


def percentile_interval(values: Ratios, level: float = CONFIDENCE_LEVEL) -> Interval:
    """Returns the interval that holds the middle `level` of the draws (D,), those without a figure left out."""
    there = values[~np.isnan(values)]
    if not len(there):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(low, high)
