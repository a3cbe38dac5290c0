"""Integer counts of predictions. Integer sums do not depend on the order."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Confusion = NDArray[np.int64]
"""(K, K): rows are the truth, columns the prediction."""

ClassCounts = NDArray[np.int64]
"""(..., K, 3): number of correct, true and predicted pixels of each class."""
CORRECT, TARGET, PREDICTED = range(3)


def confusion_matrix(prediction: Tensor, mask: Tensor, num_classes: int, ignore_id: int) -> Tensor:
    """Returns the confusion matrix (K, K) int64: rows are the truth, columns the prediction.

    Args:
        prediction: class ids 0..K-1, of any shape and integer dtype.
        mask: true class ids of the same shape.
        num_classes: K.
        ignore_id: mask value of pixels that are not counted.
    """
    valid = mask != ignore_id
    pairs = mask[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_counts(counts: Confusion) -> ClassCounts:
    """Returns the (K, 3) table of a confusion matrix (K, K)."""
    return np.stack([np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)], axis=-1)


def class_counts_of_pixels(
    prediction: Tensor, mask: Tensor, in_truth: Tensor, in_prediction: Tensor, num_classes: int
) -> Tensor:
    """Returns the (K, 3) table of selected pixels of the truth and the prediction.

    Args:
        prediction: class ids 0..K-1.
        mask: true class ids of the same shape; values where `in_truth` is False are ignored.
        in_truth: bool of the same shape; pixels of the truth that are counted.
        in_prediction: bool of the same shape; pixels of the prediction that are counted.
        num_classes: K.
    """
    correct = in_truth & in_prediction & (mask == prediction)
    selected = (mask[correct], mask[in_truth], prediction[in_prediction])
    counts = [torch.bincount(ids.long(), minlength=num_classes) for ids in selected]
    return torch.stack(counts, dim=-1)
