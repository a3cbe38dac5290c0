"""Segmentation metrics from integer counts: exact whatever the sharding, the batch size or the order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Confusion = NDArray[np.int64]


def confusion(prediction: Tensor, mask: Tensor, num_classes: int, ignore_id: int) -> Tensor:
    """Returns the counts (K, K) int64: rows are the truth, columns the prediction.

    Args:
        prediction: class ids 0..K-1, any shape and integer dtype.
        mask: true class ids of the same shape; pixels with `ignore_id` are not counted.
        num_classes: K.
        ignore_id: the mask value that is left out.
    """
    valid = mask != ignore_id
    pairs = mask[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; every ratio is 0..1.

    Attributes:
        iou: intersection over union of each class; none where the class is absent from truth and prediction.
        miou: mean of `iou` over the classes that are there.
        macc: mean recall over the classes that have ground truth.
        aacc: share of the counted pixels that are right.
        absent: classes neither true nor predicted anywhere: skipped.
        without_truth: classes predicted but never true: their IoU is 0 and counts.
        pixels: how many pixels were counted.
    """

    iou: dict[str, float | None]
    miou: float
    macc: float
    aacc: float
    absent: tuple[str, ...]
    without_truth: tuple[str, ...]
    pixels: int

    def named(self, split: str) -> dict[str, float]:
        """Returns the scores under their metric names, e.g. `val/miou` and `val/iou/car`."""
        named = {f"{split}/miou": self.miou, f"{split}/macc": self.macc, f"{split}/aacc": self.aacc}
        return named | {f"{split}/iou/{name}": iou for name, iou in self.iou.items() if iou is not None}


def scores(counts: Confusion, names: Sequence[str]) -> Scores:
    """Returns the scores of a confusion matrix (K, K) whose class ids bear these names.

    A matrix that counted nothing scores 0 everywhere and lists every class as absent.
    """
    hits = np.diag(counts)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hits
    iou = _ratio(hits, union)
    recall = _ratio(hits, truth)
    pixels = int(counts.sum())
    return Scores(
        iou={name: float(value) if there else None for name, value, there in zip(names, iou, union > 0, strict=True)},
        miou=_mean(iou[union > 0]),
        macc=_mean(recall[truth > 0]),
        aacc=float(hits.sum() / pixels) if pixels else 0.0,
        absent=tuple(name for name, total in zip(names, union, strict=True) if total == 0),
        without_truth=tuple(
            name for name, true, total in zip(names, truth, union, strict=True) if true == 0 and total > 0
        ),
        pixels=pixels,
    )


def _ratio(part: Confusion, whole: Confusion) -> NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
