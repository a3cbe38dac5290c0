"""Two models on the same images: what one gained over the other, and whether chance alone may have done it."""

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
"""Drawn from fewer images, intervals are far too narrow: of two equal models every fifth pair seems to differ at 4."""


@dataclass(frozen=True)
class MetricDelta:
    """A figure of two models.

    Attributes:
        candidate, baseline: the figure; nan where it is not defined.
        interval: of ours less theirs, 95%, of pairs: each draw of the bootstrap takes the same images for both.
        num_samples: images, or groups of them, that it is drawn from.
    """

    candidate: float
    baseline: float
    interval: Interval
    num_samples: int

    @property
    def delta(self) -> float:
        """Ours less theirs."""
        return self.candidate - self.baseline

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out, and there are images enough for it to mean anything."""
        return self.num_samples >= MIN_SAMPLES and (self.interval.low > 0 or self.interval.high < 0)

    def as_json(self) -> dict[str, float | None]:
        """Returns it for programs; what is not a number is none."""
        named = {"ours": self.candidate, "theirs": self.baseline, "gain": self.delta, **self.interval._asdict()}
        return {name: None if isnan(value) else value for name, value in named.items()}


@dataclass(frozen=True)
class ImageDelta:
    """An image as two models segmented it.

    Attributes:
        row: its number in the split.
        id: in the dataset.
        candidate, baseline: mean IoU over the classes that are true or predicted in it.
    """

    row: int
    id: str
    candidate: float
    baseline: float

    @property
    def delta(self) -> float:
        """Ours less theirs."""
        return self.candidate - self.baseline


@dataclass(frozen=True)
class Comparison:
    """What one model gained over another.

    Attributes:
        miou: over all images.
        iou: of each class.
        image_miou: the mean over images of each image's own mean IoU.
        images: that which gained most first.
    """

    miou: MetricDelta
    iou: dict[str, MetricDelta]
    image_miou: MetricDelta
    images: tuple[ImageDelta, ...]

    @property
    def improved(self) -> tuple[ImageDelta, ...]:
        """Images that gained, most first."""
        return tuple(image for image in self.images if image.delta > 0)

    @property
    def regressed(self) -> tuple[ImageDelta, ...]:
        """Images that lost, most first."""
        return tuple(image for image in reversed(self.images) if image.delta < 0)

    def as_json(self) -> dict[str, Any]:
        """Returns it for programs; what is not a number is none."""
        return {
            "miou": self.miou.as_json(),
            "iou": {name: one.as_json() for name, one in self.iou.items()},
            "image_miou": self.image_miou.as_json(),
            "images": [
                {"id": one.id, "ours": one.candidate, "theirs": one.baseline, "gain": one.delta} for one in self.images
            ],
        }

    def summary_line(self, ours: str, theirs: str) -> str:
        """Returns the one line to be remembered."""
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
    """Returns what our model gained over theirs.

    Args:
        ours: counts with the images' own.
        theirs: the same of the other model, of the same rows.
        names: of the classes.
        ids: of the rows.
        groups: of the rows, drawn as one; none draws images.
        absent: what absent classes are to the means.
        count: samples of the bootstrap.

    Raises:
        DataError: they were counted on different rows.
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
    """Returns those of the mean IoU and of each class's, of the tables (N, K, 3) of what is drawn."""
    whole = [miou_and_ious(tables.sum(axis=0), absent).tolist() for tables in pair]
    samples = [bootstrap(tables, lambda table: miou_and_ious(table, absent), count) for tables in pair]
    there = (pair[0] + pair[1]).any(axis=2).sum(axis=0).tolist()  # in how many a class occurs
    figures = zip(*whole, (samples[0] - samples[1]).T, [len(pair[0]), *there], strict=True)
    miou_, *by_class = [
        MetricDelta(our, their, percentile_interval(gains), support) for our, their, gains, support in figures
    ]
    return miou_, dict(zip(names, by_class, strict=True))


def _mean_difference(images: Sequence[Ratios], gains: Ratios, count: int) -> MetricDelta:
    """Returns the mean of the images' own figures (N,); `gains` (G, 2) are the sums of what is drawn, and how many."""
    drawn = bootstrap(gains, lambda total: total[:, 0] / np.maximum(total[:, 1], 1), count)
    ours, theirs = (float(one.mean()) if len(one) else nan for one in images)
    return MetricDelta(ours, theirs, percentile_interval(drawn), len(gains))


def _images(
    rows: Sequence[int], images: Sequence[Ratios], ids: Mapping[int, str], counted: NDArray[np.bool_]
) -> tuple[ImageDelta, ...]:
    pairs = zip(rows, *(one[counted].tolist() for one in images), strict=True)
    found = [ImageDelta(row, ids[row], ours, theirs) for row, ours, theirs in pairs]
    return tuple(sorted(found, key=lambda image: (-image.delta, image.id)))
