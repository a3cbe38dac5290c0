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


def calibration_bins(prediction: Tensor, probability: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
    """Returns the confidence bins (NUM_BINS, 3) int64, of equal width, of a prediction.

    Args:
        prediction: class ids of any shape.
        probability: probability of each predicted class, float of the same shape.
        mask: true class ids of the same shape.
        ignore_id: mask value of pixels that are not counted.
    """
    valid = mask != ignore_id
    confidence = probability[valid].double()
    units = (confidence * UNIT).round().long()
    bins = (confidence * NUM_BINS).long().clamp_max(NUM_BINS - 1)
    correct = prediction[valid].long() == mask[valid].long()
    # float64 represents integers exactly up to 2^53, which is sufficient for 10^11 pixels.
    columns = [torch.ones_like(units), correct.long(), units]
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
    pixels, correct, units = bins.T
    total = np.maximum(pixels, 1)
    accuracy, confidence = correct / total, units / UNIT / total
    gaps = np.abs(accuracy - confidence) * (pixels > 0)
    share = pixels / max(int(pixels.sum()), 1)
    is_filled = (pixels > 0).tolist()
    return Calibration(
        ece=float(gaps @ share),
        mce=float(gaps.max()),
        accuracy=_masked(accuracy, is_filled),
        confidence=_masked(confidence, is_filled),
        share=tuple(share.tolist()),
    )


def _masked(values: NDArray[np.float64], is_valid: list[bool]) -> tuple[float | None, ...]:
    return tuple(value if valid else None for value, valid in zip(values.tolist(), is_valid, strict=True))
