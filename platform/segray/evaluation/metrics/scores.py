"""Scores from counts, per class and averaged over classes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segray.evaluation.metrics.confusion import CORRECT, PREDICTED, TARGET, ClassCounts, Confusion, class_counts

AbsentPolicy = Literal["skip", "zero", "nan"]
"""Treatment in the means of classes in neither ground truth nor predictions: skipped, counted as 0, or nan."""

Ratios = NDArray[np.float64]
"""(..., K); nan where the ratio is not defined."""

PER_CLASS = ("iou", "dice", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix. Every ratio is in the range 0..1.

    Attributes:
        iou: intersection over union of each class; `None` if the class is absent from truth and prediction.
        dice: twice the intersection divided by the sum of both areas; equals the F-score with beta 1.
        precision: fraction of the predicted pixels that are correct; `None` if there are none.
        recall: fraction of the true pixels that are found; `None` if there are none.
        miou, mdice: means of `iou` and `dice` over the classes that are true or predicted.
        mprecision: mean of `precision` over the predicted classes.
        macc: mean of `recall` over the classes with ground truth.
        mfscore: mean F-score, in which recall has `beta` times the weight of precision; equals `mdice` for beta 1.
        aacc: fraction of the counted pixels that are correct.
        fwiou: mean of `iou`, weighted by each class's fraction of the truth.
        kappa: Cohen's kappa: agreement beyond chance, -1..1.
        absent: classes in neither ground truth nor predictions; `AbsentPolicy` defines their effect on the means.
        without_truth: classes that are predicted but never true; their IoU is 0 and counts.
        pixels: number of counted pixels.
    """

    iou: dict[str, float | None]
    dice: dict[str, float | None]
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    miou: float
    mdice: float
    mprecision: float
    macc: float
    mfscore: float
    aacc: float
    fwiou: float
    kappa: float
    absent: tuple[str, ...]
    without_truth: tuple[str, ...]
    pixels: int

    def as_metrics(self, split: str) -> dict[str, float]:
        """Returns the usual scores by metric name, e.g. `val/miou` and `val/iou/car`."""
        metrics = {f"{split}/miou": self.miou, f"{split}/macc": self.macc, f"{split}/aacc": self.aacc}
        return metrics | {f"{split}/iou/{name}": iou for name, iou in self.iou.items() if iou is not None}

    def all_named(self, split: str) -> dict[str, float]:
        """Returns all scores by metric name."""
        means = ("mdice", "mprecision", "mfscore", "fwiou", "kappa")
        by_class = {metric: getattr(self, metric) for metric in PER_CLASS}
        return (
            self.as_metrics(split)
            | {f"{split}/{name}": getattr(self, name) for name in means}
            | {
                f"{split}/{metric}/{name}": value
                for metric, values in by_class.items()
                for name, value in values.items()
                if value is not None
            }
        )


def scores_from_confusion(
    counts: Confusion, names: Sequence[str], absent: AbsentPolicy = "skip", beta: float = 1.0
) -> Scores:
    """Computes the scores of a confusion matrix (K, K).

    For a matrix without counts, every score is 0 and every class is listed as absent.

    Args:
        counts: confusion matrix; rows are the truth.
        names: names of the classes.
        absent: policy for absent classes in the means.
        beta: weight of recall in the F-score.
    """
    return scores_from_counts(class_counts(counts), names, absent, beta)


def scores_from_counts(
    table: ClassCounts, names: Sequence[str], absent: AbsentPolicy = "skip", beta: float = 1.0
) -> Scores:
    """Computes the scores of a table (K, 3), like `scores_from_confusion`."""
    ratios = {metric: RATIOS[metric](table) for metric in PER_CLASS}
    is_present = table.sum(axis=-1) > 0
    means = {name: float(class_mean(ratio, is_present, absent)) for name, ratio in ratios.items()}
    true_pixels = table[:, TARGET]
    return Scores(
        **{metric: _by_class(ratio, names) for metric, ratio in ratios.items()},
        miou=means["iou"],
        mdice=means["dice"],
        mprecision=means["precision"],
        macc=means["recall"],
        mfscore=float(class_mean(fscore(table, beta), is_present, absent)),
        aacc=float(aacc(table)),
        fwiou=float(np.nansum(ratios["iou"] * true_pixels) / max(int(true_pixels.sum()), 1)),
        kappa=_kappa(table),
        absent=tuple(name for name, present in zip(names, is_present, strict=True) if not present),
        without_truth=tuple(
            name for name, pixels, present in zip(names, true_pixels, is_present, strict=True) if present and not pixels
        ),
        pixels=int(true_pixels.sum()),
    )


def _by_class(ratio: Ratios, names: Sequence[str]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, ratio, strict=True)}


def iou(table: ClassCounts) -> Ratios:
    """Returns correct / (true or predicted)."""
    return _ratio(table[..., CORRECT], table[..., TARGET] + table[..., PREDICTED] - table[..., CORRECT])


def dice(table: ClassCounts) -> Ratios:
    """Returns 2 correct / (true + predicted)."""
    return fscore(table, 1.0)


def precision(table: ClassCounts) -> Ratios:
    """Returns correct / predicted."""
    return _ratio(table[..., CORRECT], table[..., PREDICTED])


def recall(table: ClassCounts) -> Ratios:
    """Returns correct / true."""
    return _ratio(table[..., CORRECT], table[..., TARGET])


def fscore(table: ClassCounts, beta: float) -> Ratios:
    """Returns (1 + beta^2) correct / (beta^2 true + predicted)."""
    weight = beta**2
    return _ratio((1 + weight) * table[..., CORRECT], weight * table[..., TARGET] + table[..., PREDICTED])


RATIOS = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}


def aacc(table: ClassCounts) -> Ratios:
    """Returns the fraction of correct pixels (...), or 0 if there are no pixels."""
    return np.nan_to_num(_ratio(table[..., CORRECT].sum(axis=-1), table[..., TARGET].sum(axis=-1)))


def class_mean(ratio: Ratios, is_present: NDArray[np.bool_], absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean (...) over the classes (..., K) whose ratio is defined, or 0 if there are none.

    Args:
        ratio: ratio of each class.
        is_present: whether each class is true or predicted anywhere.
        absent: policy for absent classes in the mean.
    """
    if absent == "zero":
        ratio = np.where(is_present, ratio, 0.0)
    defined = ~np.isnan(ratio)
    means = np.where(defined, ratio, 0.0).sum(axis=-1) / np.maximum(defined.sum(axis=-1), 1)
    if absent == "nan":
        means = np.where(is_present.all(axis=-1), means, np.nan)
    return np.asarray(means, np.float64)


def _ratio(numerator: NDArray[np.number], denominator: NDArray[np.number]) -> Ratios:
    out = np.full(np.shape(denominator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))


def _kappa(table: ClassCounts) -> float:
    """Returns (agreement - chance) / (1 - chance), or 0 if the chance agreement is 1 or there are no pixels."""
    pixels = float(table[:, TARGET].sum())
    if not pixels:
        return 0.0
    agreement = table[:, CORRECT].sum() / pixels
    chance = float((table[:, TARGET] / pixels) @ (table[:, PREDICTED] / pixels))
    return float((agreement - chance) / (1 - chance)) if chance < 1 else 0.0


def group_counts(tables: ClassCounts, groups: Sequence[str]) -> dict[str, ClassCounts]:
    """Returns the sum of the images' tables (N, K, 3) of each group, sorted by group name."""
    members = defaultdict[str, list[int]](list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return {name: tables[members[name]].sum(axis=0) for name in sorted(members)}
