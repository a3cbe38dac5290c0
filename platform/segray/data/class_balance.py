"""Sampling rates per row, computed from the class pixel counts of the masks."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segray.config import DataConfig
from segray.core.errors import DataError
from segray.data.reader import SplitReader

DrawCounts = NDArray[np.float64]
Pixels = NDArray[np.int64]


def draws_per_epoch(source: SplitReader, config: DataConfig) -> DrawCounts | None:
    """Returns the mean number of draws per epoch for each row of a split, (rows,), or `None` for uniform sampling.

    The formula depends on `data.sampler`: `rare_class` and `repeat` weight the rows, `all` draws each row once.

    Raises:
        DataError: a shard cannot be read, or every pixel of the split is ignored.
    """
    if config.sampler != "all" and not any(source.split.class_pixels):
        raise DataError(
            f"data.sampler is {config.sampler}, but every pixel of the split at {source.root} is ignored; use "
            "data.sampler all, or convert the dataset again with other ignored ids."
        )
    if config.sampler == "rare_class":
        return rare_class_sampling(source.class_pixels(), source.split.class_pixels, config.rare_class_temperature)
    return (
        repeat_factor_sampling(source.class_pixels(), config.repeat_threshold) if config.sampler == "repeat" else None
    )


def class_probabilities(class_pixels: Sequence[int], temperature: float) -> DrawCounts:
    """Returns the probability of sampling each class, (K,); a class without pixels has probability 0.

    The probabilities are softmax((1 - f) / temperature), where f is the share of the pixels of each class. See: Hoyer
    et al., DAFormer (2022), section 3.2, which uses temperature 0.01.
    """
    pixels = np.asarray(class_pixels, np.float64)
    scores = np.where(pixels > 0, (1 - pixels / max(1.0, pixels.sum())) / temperature, -np.inf)
    weights = np.exp(scores - scores.max(initial=0.0, where=np.isfinite(scores)))
    return np.asarray(weights / max(weights.sum(), np.finfo(float).tiny))


def rare_class_sampling(row_pixels: Iterable[Pixels], class_pixels: Sequence[int], temperature: float) -> DrawCounts:
    """Computes the mean number of draws per epoch for each row under rare class sampling.

    A draw first samples a class, then samples a row in proportion to its pixels of that class. Row i is drawn rows *
    sum over classes c of probability(c) * pixels(i, c) / pixels(c) times per epoch. Images with more pixels of a rare
    class are therefore drawn more often.

    Args:
        row_pixels: chunks of per-row class pixel counts, (n, K) each, in row order.
        class_pixels: pixels of each class over all rows, (K,).
        temperature: softmax temperature; see `class_probabilities`.
    """
    weights = class_probabilities(class_pixels, temperature) / np.maximum(1, np.asarray(class_pixels, np.float64))
    probabilities = np.concatenate([chunk @ weights for chunk in row_pixels])
    return probabilities * len(probabilities)


def repeat_factor_sampling(row_pixels: Iterable[Pixels], threshold: float) -> DrawCounts:
    """Computes the mean number of draws per epoch for each row under repeat factor sampling; at least 1.

    A class that occurs in a fraction f of the rows has the repeat factor max(1, sqrt(threshold / f)). The repeat factor
    of a row is the largest repeat factor of its classes. See: Gupta et al., LVIS (2019), section 3.2.

    Args:
        row_pixels: chunks of per-row class pixel counts, (n, K) each, in row order.
        threshold: fraction of the rows below which a class is rare, 0..1.
    """
    is_present = np.concatenate([chunk > 0 for chunk in row_pixels])
    frequencies = is_present.mean(axis=0)
    class_factors = np.sqrt(threshold / np.maximum(frequencies, 1 / len(is_present)))
    row_factors: DrawCounts = np.maximum(1.0, np.where(is_present, class_factors, 0.0).max(axis=1))
    return row_factors
