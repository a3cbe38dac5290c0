"""Comparison of a candidate and a baseline model on the same images, with significance by the paired bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np

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
        values = {"ours": self.candidate, "theirs": self.baseline, "gain": self.delta, **self.interval._asdict()}
        return {name: None if isnan(value) else value for name, value in values.items()}


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
            "iou": {name: metric.as_json() for name, metric in self.iou.items()},
            "image_miou": self.image_miou.as_json(),
            "images": [
                {"id": image.id, "ours": image.candidate, "theirs": image.baseline, "gain": image.delta}
                for image in self.images
            ],
        }

    def summary_line(self, candidate: str, baseline: str) -> str:
        """Returns a summary of the comparison in one line.

        Args:
            candidate: name of the candidate.
            baseline: name of the baseline.
        """
        if not self.miou.is_significant:
            verdict = f"no significant difference between {candidate} and {baseline}"
        else:
            verdict = f"{candidate} is {'better' if self.miou.delta > 0 else 'worse'} than {baseline}"
        miou, (low, high) = self.miou, self.miou.interval
        units = "images" if self.miou.num_samples == len(self.images) else "groups"
        return (
            f"{verdict}: mIoU {miou.candidate:.4f} vs. {miou.baseline:.4f}, difference {miou.delta:+.4f}, "
            f"95% interval [{low:+.4f}, {high:+.4f}] (paired bootstrap over {miou.num_samples} {units})"
        )


def compare(
    candidate: Counts,
    baseline: Counts,
    names: Sequence[str],
    ids: Mapping[int, str],
    *,
    groups: Mapping[int, str] | None = None,
    absent: AbsentPolicy = "skip",
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Compares a candidate model with a baseline model.

    Args:
        candidate: counts of the candidate, including the counts of each image.
        baseline: counts of the baseline on the same rows.
        names: names of the classes.
        ids: ids of the rows.
        groups: groups of the rows, resampled as a unit; defaults to resampling single images.
        absent: policy for absent classes in the means.
        num_resamples: number of bootstrap resamples.

    Raises:
        DataError: the models were evaluated on different rows.
    """
    rows = sorted(candidate.images)
    if not rows or rows != sorted(baseline.images):
        raise DataError("the models were not evaluated on the same images; evaluate both on the same split.")
    pair = [np.stack([counts.images[row].dense(len(names)) for row in rows]) for counts in (candidate, baseline)]
    image_mious = [miou(tables) for tables in pair]
    has_truth = np.asarray(pair[0][..., TARGET].any(axis=1))
    deltas = np.stack([np.where(has_truth, image_mious[0] - image_mious[1], 0.0), has_truth], axis=1)
    grouped = [sum_by_group(tables, rows, groups) for tables in pair]
    valid_mious = [values[has_truth] for values in image_mious]
    valid_rows = [row for row, is_valid in zip(rows, has_truth, strict=True) if is_valid]
    return Comparison(
        *_metric_deltas(grouped, names, absent, num_resamples),
        image_miou=_image_miou_delta(valid_mious, sum_by_group(deltas, rows, groups), num_resamples),
        images=_image_deltas(valid_rows, valid_mious, ids),
    )


def _metric_deltas(
    pair: Sequence[ClassCounts], names: Sequence[str], absent: AbsentPolicy, num_resamples: int
) -> tuple[MetricDelta, dict[str, MetricDelta]]:
    """Returns the differences of the mean IoU and of each class IoU, from the tables (N, K, 3) that are resampled."""
    totals = [miou_and_ious(tables.sum(axis=0), absent).tolist() for tables in pair]
    samples = [bootstrap(tables, lambda table: miou_and_ious(table, absent), num_resamples) for tables in pair]
    class_samples = (pair[0] + pair[1]).any(axis=2).sum(axis=0).tolist()  # number of samples in which a class occurs
    columns = zip(*totals, (samples[0] - samples[1]).T, [len(pair[0]), *class_samples], strict=True)
    miou_delta, *class_deltas = [
        MetricDelta(candidate, baseline, percentile_interval(deltas), num_samples)
        for candidate, baseline, deltas, num_samples in columns
    ]
    return miou_delta, dict(zip(names, class_deltas, strict=True))


def _image_miou_delta(image_mious: Sequence[Ratios], deltas: Ratios, num_resamples: int) -> MetricDelta:
    """Returns the difference of the means of the per-image scores (N,).

    `deltas` (G, 2) contains, for each resampled unit, the sum of the differences and the number of images.
    """
    samples = bootstrap(deltas, lambda total: total[:, 0] / np.maximum(total[:, 1], 1), num_resamples)
    candidate, baseline = (float(values.mean()) if len(values) else nan for values in image_mious)
    return MetricDelta(candidate, baseline, percentile_interval(samples), len(deltas))


def _image_deltas(rows: Sequence[int], image_mious: Sequence[Ratios], ids: Mapping[int, str]) -> tuple[ImageDelta, ...]:
    triples = zip(rows, *(values.tolist() for values in image_mious), strict=True)
    images = [ImageDelta(row, ids[row], candidate, baseline) for row, candidate, baseline in triples]
    return tuple(sorted(images, key=lambda image: (-image.delta, image.id)))
