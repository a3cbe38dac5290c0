"""What the counts say: by class and as means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segray.evaluation.metrics.confusion import CORRECT, PREDICTED, TARGET, ClassCounts, Confusion, class_counts

AbsentPolicy = Literal["skip", "zero", "nan"]
"""What classes that are neither true nor predicted anywhere are to the means: left out, 0, or not a number."""

Ratios = NDArray[np.float64]
"""(..., K); nan where it is not defined."""

PER_CLASS = ("iou", "dice", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; every ratio is 0..1.

    Attributes:
        iou: intersection over union of each class; none where the class is absent from truth and prediction.
        dice: twice the intersection over the sum of both, which is also the F-score with beta 1.
        precision: share of what was predicted that is right; none where nothing was.
        recall: share of what is true that was found; none where nothing is.
        miou, mdice: means of `iou` and `dice` over the classes that are there.
        mprecision: mean of `precision` over the classes that were predicted.
        macc: mean of `recall` over the classes that have ground truth.
        mfscore: mean F-score, which weighs recall `beta` times as much as precision; `mdice` where beta is 1.
        aacc: share of the counted pixels that are right.
        fwiou: mean of `iou`, each class weighed by its share of the truth.
        kappa: Cohen's; agreement beyond chance, -1..1.
        absent: classes neither true nor predicted anywhere: what the means make of them is a choice.
        without_truth: classes predicted but never true: their IoU is 0 and counts.
        pixels: how many pixels were counted.
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
        """Returns the usual scores under their metric names, e.g. `val/miou` and `val/iou/car`."""
        named = {f"{split}/miou": self.miou, f"{split}/macc": self.macc, f"{split}/aacc": self.aacc}
        return named | {f"{split}/iou/{name}": iou for name, iou in self.iou.items() if iou is not None}

    def all_named(self, split: str) -> dict[str, float]:
        """Returns every score under its metric name."""
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
    """Returns the scores of a confusion matrix (K, K) whose class ids bear these names.

    A matrix that counted nothing scores 0 everywhere and lists every class as absent.

    Args:
        counts: rows are the truth.
        names: of the classes.
        absent: what absent classes are to the means.
        beta: of the F-score.
    """
    return scores_from_counts(class_counts(counts), names, absent, beta)


def scores_from_counts(
    table: ClassCounts, names: Sequence[str], absent: AbsentPolicy = "skip", beta: float = 1.0
) -> Scores:
    """Returns the scores of a table (K, 3), as `scores` does."""
    ratios = {metric: RATIOS[metric](table) for metric in PER_CLASS}
    there = table.sum(axis=-1) > 0
    means = {name: float(class_mean(ratio, there, absent)) for name, ratio in ratios.items()}
    true = table[:, TARGET]
    return Scores(
        **{metric: _named(ratio, names) for metric, ratio in ratios.items()},
        miou=means["iou"],
        mdice=means["dice"],
        mprecision=means["precision"],
        macc=means["recall"],
        mfscore=float(class_mean(fscore(table, beta), there, absent)),
        aacc=float(aacc(table)),
        fwiou=float(np.nansum(ratios["iou"] * true) / max(int(true.sum()), 1)),
        kappa=_kappa(table),
        absent=tuple(name for name, is_there in zip(names, there, strict=True) if not is_there),
        without_truth=tuple(
            name for name, pixels, is_there in zip(names, true, there, strict=True) if pixels == 0 and is_there
        ),
        pixels=int(true.sum()),
    )


def _named(ratio: Ratios, names: Sequence[str]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, ratio, strict=True)}


def iou(table: ClassCounts) -> Ratios:
    """Returns right / (true or predicted)."""
    return _ratio(table[..., CORRECT], table[..., TARGET] + table[..., PREDICTED] - table[..., CORRECT])


def dice(table: ClassCounts) -> Ratios:
    """Returns 2 right / (true + predicted)."""
    return fscore(table, 1.0)


def precision(table: ClassCounts) -> Ratios:
    """Returns right / predicted."""
    return _ratio(table[..., CORRECT], table[..., PREDICTED])


def recall(table: ClassCounts) -> Ratios:
    """Returns right / true."""
    return _ratio(table[..., CORRECT], table[..., TARGET])


def fscore(table: ClassCounts, beta: float) -> Ratios:
    """Returns (1 + beta^2) right / (beta^2 true + predicted)."""
    weight = beta**2
    return _ratio((1 + weight) * table[..., CORRECT], weight * table[..., TARGET] + table[..., PREDICTED])


RATIOS = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}


def aacc(table: ClassCounts) -> Ratios:
    """Returns the share of the pixels that are right, (...), 0 where there are none."""
    return np.nan_to_num(_ratio(table[..., CORRECT].sum(axis=-1), table[..., TARGET].sum(axis=-1)))


def class_mean(ratio: Ratios, there: NDArray[np.bool_], absent: AbsentPolicy = "skip") -> Ratios:
    """Returns the mean (...) over classes (..., K) for which the ratio is defined; 0 where it is for none.

    Args:
        ratio: of each class.
        there: which classes are true or predicted anywhere.
        absent: what the others are to the mean.
    """
    if absent == "zero":
        ratio = np.where(there, ratio, 0.0)
    defined = ~np.isnan(ratio)
    means = np.where(defined, ratio, 0.0).sum(axis=-1) / np.maximum(defined.sum(axis=-1), 1)
    if absent == "nan":
        means = np.where(there.all(axis=-1), means, np.nan)
    return np.asarray(means, np.float64)


def _ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Ratios:
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))


def _kappa(table: ClassCounts) -> float:
    """Returns (agreement - chance) / (1 - chance), 0 where chance leaves nothing to be agreed on."""
    pixels = float(table[:, TARGET].sum())
    if not pixels:
        return 0.0
    agreed = table[:, CORRECT].sum() / pixels
    chance = float((table[:, TARGET] / pixels) @ (table[:, PREDICTED] / pixels))
    return float((agreed - chance) / (1 - chance)) if chance < 1 else 0.0


def group_counts(tables: Sequence[ClassCounts], groups: Sequence[str]) -> Mapping[str, ClassCounts]:
    """Returns the sum of the images' tables (K, 3) of each group, in order of the groups' names."""
    return {
        name: np.sum([table for table, group in zip(tables, groups, strict=True) if group == name], axis=0)
        for name in sorted(set(groups))
    }
