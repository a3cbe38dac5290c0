"""Whether a model is as sure as it is right: confidence in bins, in whole numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS = 15
UNIT = 2**16
"""A confidence of 1; sums of so many are the same in any order."""

Bins = NDArray[np.int64]
"""(NUM_BINS, 3): pixels, pixels that are right, and their confidence summed, in units."""


def calibration_bins(prediction: Tensor, sure: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
    """Returns the bins (NUM_BINS, 3) int64 of equal width of a prediction.

    Args:
        prediction: class ids, any shape.
        sure: probability of each, float of the same shape.
        mask: true class ids of the same shape.
        ignore_id: mask value that is not counted.
    """
    valid = mask != ignore_id
    confidence = sure[valid].double()
    units = (confidence * UNIT).round().long()
    bins = (confidence * NUM_BINS).long().clamp_max(NUM_BINS - 1)
    right = prediction[valid].long() == mask[valid].long()
    # A double holds whole numbers up to 2^53: the units of 10^11 pixels.
    columns = [torch.ones_like(units), right.long(), units]
    sums = [torch.bincount(bins, weights=column.double(), minlength=NUM_BINS) for column in columns]
    return torch.stack(sums, dim=-1).long()


@dataclass(frozen=True)
class Calibration:
    """What the bins say.

    Attributes:
        ece: expected calibration error: the mean gap of confidence and accuracy, weighed by the bins' pixels.
        mce: the largest gap of a bin.
        accuracy, confidence: of each bin; none where it is empty.
        share: of the pixels that are in each bin.
    """

    ece: float
    mce: float
    accuracy: tuple[float | None, ...]
    confidence: tuple[float | None, ...]
    share: tuple[float, ...]


def compute_calibration(bins: Bins) -> Calibration:
    """Returns what bins (NUM_BINS, 3) say."""
    pixels, right, units = bins.T
    whole = np.maximum(pixels, 1)
    accuracy, confidence = right / whole, units / UNIT / whole
    gaps = np.abs(accuracy - confidence) * (pixels > 0)
    share = pixels / max(int(pixels.sum()), 1)
    there = (pixels > 0).tolist()
    return Calibration(
        ece=float(gaps @ share),
        mce=float(gaps.max()),
        accuracy=tuple(value if one else None for value, one in zip(accuracy.tolist(), there, strict=True)),
        confidence=tuple(value if one else None for value, one in zip(confidence.tolist(), there, strict=True)),
        share=tuple(share.tolist()),
    )
