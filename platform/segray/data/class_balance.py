"""How often an epoch draws each row, from the classes its mask holds: the samplers' formulas."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segray.config import DataConfig
from segray.core.errors import DataError
from segray.data.reader import SplitReader

DrawCounts = NDArray[np.float64]
Pixels = NDArray[np.int64]


def draws_per_epoch(source: SplitReader, config: DataConfig) -> DrawCounts | None:
    """Returns how often an epoch draws each row of a split, (rows,), by the sampler of the settings.

    Raises:
        DataError: a shard cannot be read, or all of the split is ignored.
    """
    if config.sampler != "all" and not any(source.split.class_pixels):
        raise DataError(
            f"every pixel of the split at {source.root} is ignored, so data.sampler {config.sampler} finds no class; "
            "use data.sampler all, or convert again with the right ignored ids."
        )
    if config.sampler == "rare_class":
        return rare_class_sampling(source.class_pixels(), source.split.class_pixels, config.temperature)
    return repeat_factor_sampling(source.class_pixels(), config.repeat_below) if config.sampler == "repeat" else None


def class_probabilities(class_pixels: Sequence[int], temperature: float) -> DrawCounts:
    """Returns the chance of each class (K,) to be the one a draw is made for; 0 for classes without a pixel.

    softmax((1 - f) / temperature) over the classes' shares f of the pixels. See: Hoyer et al., DAFormer (2022),
    section 3.2, there with temperature 0.01.
    """
    pixels = np.asarray(class_pixels, np.float64)
    scores = np.where(pixels > 0, (1 - pixels / max(1.0, pixels.sum())) / temperature, -np.inf)
    weights = np.exp(scores - scores.max(initial=0.0, where=np.isfinite(scores)))
    return np.asarray(weights / max(weights.sum(), np.finfo(float).tiny))


def rare_class_sampling(parts: Iterable[Pixels], class_pixels: Sequence[int], temperature: float) -> DrawCounts:
    """Returns how often each row is drawn where a draw first chooses a class, then a row by its pixels of that class.

    Row i is drawn rows * sum over classes c of chance(c) * pixels(i, c) / pixels(c) times: the more of a rare class
    an image has, the likelier.

    Args:
        parts: pixels (n, K) of each class in each row, some rows at a time, in order.
        class_pixels: pixels of each class over all rows, (K,).
        temperature: see `class_chances`.
    """
    weights = class_probabilities(class_pixels, temperature) / np.maximum(1, np.asarray(class_pixels, np.float64))
    chances = np.concatenate([part @ weights for part in parts])
    return chances * len(chances)


def repeat_factor_sampling(parts: Iterable[Pixels], below: float) -> DrawCounts:
    """Returns how often each row is drawn where rows with a rare class are repeated: at least once.

    A class that a share f of the rows has asks for max(1, sqrt(below / f)) times; a row is drawn as often as its
    most asking class says. See: Gupta et al., LVIS (2019), section 3.2, repeat factor sampling.

    Args:
        parts: pixels (n, K) of each class in each row, some rows at a time, in order.
        below: share of the rows below which a class is rare, 0..1.
    """
    present = np.concatenate([part > 0 for part in parts])
    shares = present.mean(axis=0)
    factors = np.sqrt(below / np.maximum(shares, 1 / len(present)))
    times: DrawCounts = np.maximum(1.0, np.where(present, factors, 0.0).max(axis=1))
    return times
