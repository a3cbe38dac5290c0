"""Calibration metrics from integer bins of the confidence."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS = 15
UNIT = 2**16
"""Integer that represents a confidence of 1; integer sums do not depend on the order."""

Bins = NDArray[np.int64]
"""(NUM_BINS, 3): number of pixels, number of correct pixels, and sum of the pixels' confidence in units of 1/UNIT."""


def calibration_bins(prediction: Tensor, sure: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
    """Returns the confidence bins (NUM_BINS, 3) int64, of equal width, of a prediction.

    Args:
        prediction: class ids of any shape.
        sure: probability of each predicted class, float of the same shape.
        mask: true class ids of the same shape.
        ignore_id: mask value of pixels that are not counted.
    """
    valid = mask != ignore_id
    confidence = sure[valid].double()
    units = (confidence * UNIT).round().long()
    bins = (confidence * NUM_BINS).long().clamp_max(NUM_BINS - 1)
    right = prediction[valid].long() == mask[valid].long()
    # float64 represents integers exactly up to 2^53, which is sufficient for 10^11 pixels.
    columns = [torch.ones_like(units), right.long(), units]
    sums = [torch.bincount(bins, weights=column.double(), minlength=NUM_BINS) for column in columns]
    return torch.stack(sums, dim=-1).long()


@dataclass(frozen=True)
class Calibration:
    """Calibration metrics.

    Attributes:
        ece: expected calibration error: mean gap between confidence and accuracy, weighted by the pixels of the bins.
        mce: maximum calibration error: largest gap of a bin.
        accuracy, confidence: mean values in each bin; `None` if the bin is empty.
        share: fraction of the pixels in each bin.
    """

    ece: float
    mce: float
    accuracy: tuple[float | None, ...]
    confidence: tuple[float | None, ...]
    share: tuple[float, ...]


def compute_calibration(bins: Bins) -> Calibration:
    """Computes the calibration metrics of bins (NUM_BINS, 3)."""
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
