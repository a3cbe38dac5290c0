"""Uncertainty of scores by bootstrap over images, for one model and for pairs of models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray.evaluation.metrics.confusion import ClassCounts
from segray.evaluation.metrics.scores import AbsentPolicy, Ratios, class_mean, iou

NUM_RESAMPLES = 2000
CONFIDENCE_LEVEL = 0.95
RESAMPLE_BATCH = 2**24  # number of weights in memory at once

Statistic = Callable[[Any], Ratios]
"""Maps the tables (D, K, 3) of D resamples to values (D,) or (D, K)."""


class Interval(NamedTuple):
    """A percentile interval.

    Attributes:
        low, high: bounds; nan if the value is not defined in any resample.
    """

    low: float
    high: float


def miou(table: ClassCounts, absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean IoU (...) of tables (..., K, 3)."""
    return class_mean(iou(table), table.sum(axis=-1) > 0, absent)


def miou_and_ious(table: ClassCounts, absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean IoU and the IoU of each class (..., 1 + K) of tables (..., K, 3)."""
    return np.concatenate([miou(table, absent)[..., None], iou(table)], axis=-1)


def sum_by_group(values: NDArray[Any], rows: Sequence[int], groups: Mapping[int, str] | None) -> NDArray[Any]:
    """Sums the values (N, ...) of images by group (G, ...), because e.g. frames of a video are not independent.

    Args:
        values: values of each image.
        rows: row numbers of the images.
        groups: group of each row; defaults to one group per image.
    """
    if groups is None:
        return values
    names = sorted({groups[row] for row in rows})
    index_of = {name: index for index, name in enumerate(names)}
    total = np.zeros((len(names), *values.shape[1:]), values.dtype)
    np.add.at(total, [index_of[groups[row]] for row in rows], values)
    return total


def bootstrap(
    tables: ClassCounts | Ratios, statistic: Statistic, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Ratios:
    """Returns the values of a statistic for `num_resamples` resamples of the images, sampled with replacement.

    Args:
        tables: tables (N, K, 3) of the images, or other additive values.
        statistic: function of the summed tables.
        num_resamples: number of resamples.
        seed: random seed; equal seeds sample the same images, as needed for the paired comparison of two models.
    """
    flat = tables.reshape(len(tables), -1).astype(np.float64)
    parts = [weights @ flat for weights in _weights(len(tables), num_resamples, seed)]
    return statistic(np.concatenate(parts).reshape(num_resamples, *tables.shape[1:]))


def _weights(num_images: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields the number of times each image is sampled, (D, N), for batches of D resamples."""
    random = np.random.default_rng(seed)
    batch_size = max(1, RESAMPLE_BATCH // num_images)
    for first in range(0, num_resamples, batch_size):
        size = min(batch_size, num_resamples - first)
        yield random.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)


def percentile_interval(values: Ratios, level: float = CONFIDENCE_LEVEL) -> Interval:
    """Returns the central interval that contains the fraction `level` of the resamples (D,). nan values are ignored."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(low, high)
