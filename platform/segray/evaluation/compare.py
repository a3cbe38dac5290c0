"""Comparison of a candidate and a baseline model on the same images, with significance by the paired bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.core.errors import DataError
from segray.evaluation.counter import Counts
from segray.evaluation.metrics.bootstrap import (
    NUM_RESAMPLES,
    Interval,
    bootstrap,
    miou,
    miou_and_ious,
    percentile_interval,
    sum_by_group,
)
from segray.evaluation.metrics.confusion import TARGET, ClassCounts
from segray.evaluation.metrics.scores import AbsentPolicy, Ratios

MIN_SAMPLES = 10
"""Minimum sample size. Smaller samples give too narrow intervals: with 4, one in five equal pairs seems to differ."""


@dataclass(frozen=True)
class MetricDelta:
    """A metric of two models.

    Attributes:
        candidate, baseline: values of the metric; nan if it is not defined.
        interval: 95% interval of the candidate's value minus the baseline's, by the paired bootstrap; each resample
            uses the same images for both models.
        num_samples: number of images, or of groups of images, that are resampled.
    """

    candidate: float
    baseline: float
    interval: Interval
    num_samples: int

    @property
    def delta(self) -> float:
        """Difference of the candidate's and the baseline's value."""
        return self.candidate - self.baseline

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero and the number of samples is large enough for a valid interval."""
        return self.num_samples >= MIN_SAMPLES and (self.interval.low > 0 or self.interval.high < 0)

    def as_json(self) -> dict[str, float | None]:
        """Returns a JSON-compatible dict; nan becomes `None`."""
        named = {"ours": self.candidate, "theirs": self.baseline, "gain": self.delta, **self.interval._asdict()}
        return {name: None if isnan(value) else value for name, value in named.items()}


@dataclass(frozen=True)
class ImageDelta:
    """The scores of two models on one image.

    Attributes:
        row: row number in the split.
        id: id in the dataset.
        candidate, baseline: mean IoU over the classes that are true or predicted in the image.
    """

    row: int
    id: str
    candidate: float
    baseline: float

    @property
    def delta(self) -> float:
        """Difference of the candidate's and the baseline's mean IoU."""
        return self.candidate - self.baseline


@dataclass(frozen=True)
class Comparison:
    """Differences between a candidate and a baseline model.

    Attributes:
        miou: mean IoU over all images.
        iou: IoU of each class.
        image_miou: mean over images of the mean IoU of each image.
        images: images in descending order of the difference.
    """

    miou: MetricDelta
    iou: dict[str, MetricDelta]
    image_miou: MetricDelta
    images: tuple[ImageDelta, ...]

    @property
    def improved(self) -> tuple[ImageDelta, ...]:
        """Images with a better score, largest difference first."""
        return tuple(image for image in self.images if image.delta > 0)

    @property
    def regressed(self) -> tuple[ImageDelta, ...]:
        """Images with a worse score, largest difference first."""
        return tuple(image for image in reversed(self.images) if image.delta < 0)

    def as_json(self) -> dict[str, Any]:
        """Returns a JSON-compatible dict; nan becomes `None`."""
        return {
            "miou": self.miou.as_json(),
            "iou": {name: one.as_json() for name, one in self.iou.items()},
            "image_miou": self.image_miou.as_json(),
            "images": [
                {"id": one.id, "ours": one.candidate, "theirs": one.baseline, "gain": one.delta} for one in self.images
            ],
        }

    def summary_line(self, ours: str, theirs: str) -> str:
        """Returns a summary of the comparison in one line."""
        if not self.miou.is_significant:
            said = f"no difference between {ours} and {theirs} can be told"
        else:
            said = f"{ours} is {'better' if self.miou.delta > 0 else 'worse'} than {theirs}"
        low, high = self.miou.interval
        drawn = "images" if self.miou.num_samples == len(self.images) else "groups"
        return (
            f"{said}: mIoU {self.miou.candidate:.4f} against {self.miou.baseline:.4f}, {self.miou.delta:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], 95% over {self.miou.num_samples} {drawn} in pairs"
        )


def compare(
    ours: Counts,
    theirs: Counts,
    names: Sequence[str],
    ids: Mapping[int, str],
    *,
    groups: Mapping[int, str] | None = None,
    absent: AbsentPolicy = "skip",
    count: int = NUM_RESAMPLES,
) -> Comparison:
    """Compares a candidate model with a baseline model.

    Args:
        ours: counts of the candidate, including the counts of each image.
        theirs: counts of the baseline on the same rows.
        names: names of the classes.
        ids: ids of the rows.
        groups: groups of the rows, resampled as a unit; defaults to resampling single images.
        absent: policy for absent classes in the means.
        count: number of bootstrap resamples.

    Raises:
        DataError: the models were evaluated on different rows.
    """
    rows = sorted(ours.images)
    if not rows or rows != sorted(theirs.images):
        raise DataError("the two models were not evaluated on the same images; evaluate both on one split.")
    pair = [np.stack([counts.images[row].dense(len(names)) for row in rows]) for counts in (ours, theirs)]
    images = [miou(tables) for tables in pair]
    counted = np.asarray(pair[0][..., TARGET].any(axis=1))
    gains = np.stack([np.where(counted, images[0] - images[1], 0.0), counted], axis=1)
    drawn = [sum_by_group(tables, rows, groups) for tables in pair]
    return Comparison(
        *_differences(drawn, names, absent, count),
        image_miou=_mean_difference([one[counted] for one in images], sum_by_group(gains, rows, groups), count),
        images=_images(
            [row for row, is_counted in zip(rows, counted, strict=True) if is_counted], images, ids, counted
        ),
    )


def _differences(
    pair: Sequence[ClassCounts], names: Sequence[str], absent: AbsentPolicy, count: int
) -> tuple[MetricDelta, dict[str, MetricDelta]]:
    """Returns the differences of the mean IoU and of each class IoU, from the tables (N, K, 3) that are resampled."""
    whole = [miou_and_ious(tables.sum(axis=0), absent).tolist() for tables in pair]
    samples = [bootstrap(tables, lambda table: miou_and_ious(table, absent), count) for tables in pair]
    there = (pair[0] + pair[1]).any(axis=2).sum(axis=0).tolist()  # number of samples in which a class occurs
    figures = zip(*whole, (samples[0] - samples[1]).T, [len(pair[0]), *there], strict=True)
    miou_, *by_class = [
        MetricDelta(our, their, percentile_interval(gains), support) for our, their, gains, support in figures
    ]
    return miou_, dict(zip(names, by_class, strict=True))


def _mean_difference(images: Sequence[Ratios], gains: Ratios, count: int) -> MetricDelta:
    """Returns the difference of the means of the per-image scores (N,).

    `gains` (G, 2) contains, for each resampled unit, the sum of the differences and the number of images.
    """
    drawn = bootstrap(gains, lambda total: total[:, 0] / np.maximum(total[:, 1], 1), count)
    ours, theirs = (float(one.mean()) if len(one) else nan for one in images)
    return MetricDelta(ours, theirs, percentile_interval(drawn), len(gains))


def _images(
    rows: Sequence[int], images: Sequence[Ratios], ids: Mapping[int, str], counted: NDArray[np.bool_]
) -> tuple[ImageDelta, ...]:
    pairs = zip(rows, *(one[counted].tolist() for one in images), strict=True)
    found = [ImageDelta(row, ids[row], ours, theirs) for row, ours, theirs in pairs]
    return tuple(sorted(found, key=lambda image: (-image.delta, image.id)))
