"""Results of an evaluation: scores with intervals, contour scores, image scores and slice scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segray.core.numbers import nan_to_none
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
from segray.evaluation.metrics.calibration import Calibration, compute_calibration
from segray.evaluation.metrics.confusion import TARGET, ClassCounts
from segray.evaluation.metrics.scores import (
    AbsentPolicy,
    Scores,
    aacc,
    group_counts,
    scores_from_confusion,
    scores_from_counts,
)


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image.

    Attributes:
        row: row number in the split.
        id: id in the dataset.
        miou: mean IoU over the classes that are true or predicted in the image.
        aacc: fraction of the counted pixels that are correct.
    """

    row: int
    id: str
    miou: float
    aacc: float


@dataclass(frozen=True)
class EvaluationResults:
    """Results computed from the counts.

    Attributes:
        scores: scores of all images.
        miou_interval: 95% interval of the mean IoU, by bootstrap over images.
        iou_intervals: 95% interval of each class's IoU; `None` if the class is absent.
        boundary: scores within each width of the contours of each class.
        trimap: scores of the pixels within each width of the truth's contours.
        calibration: calibration metrics; `None` if the confidence was not counted.
        images: scores of the images, worst first, without images that have no counted pixels.
        slices: scores by slice name and value.
    """

    scores: Scores
    miou_interval: Interval
    iou_intervals: dict[str, Interval | None]
    boundary: dict[int, Scores]
    trimap: dict[int, Scores]
    calibration: Calibration | None
    images: tuple[ImageScore, ...]
    slices: dict[str, dict[str, Scores]]


def compute_results(
    counts: Counts,
    names: Sequence[str],
    ids: Mapping[int, str],
    slices: Mapping[str, Mapping[int, str]] | None = None,
    *,
    groups: Mapping[int, str] | None = None,
    absent: AbsentPolicy = "skip",
    beta: float = 1.0,
    num_resamples: int = NUM_RESAMPLES,
) -> EvaluationResults:
    """Computes the results from counts.

    Args:
        counts: counts, including the counts of each image.
        names: names of the classes.
        ids: ids of the rows.
        slices: value of each row, by slice name.
        groups: groups of the rows, resampled as a unit; defaults to resampling single images.
        absent: policy for absent classes in the means.
        beta: weight of recall in the F-score.
        num_resamples: number of bootstrap resamples.
    """
    rows = sorted(counts.images)
    tables = np.stack([counts.images[row].dense(len(names)) for row in rows])
    grouped = sum_by_group(tables, rows, groups)
    samples = bootstrap(grouped, lambda table: miou_and_ious(table, absent), num_resamples)
    scores = scores_from_confusion(counts.confusion, names, absent, beta)
    return EvaluationResults(
        scores=scores,
        miou_interval=percentile_interval(samples[:, 0]),
        iou_intervals={
            name: None if scores.iou[name] is None else percentile_interval(samples[:, index + 1])
            for index, name in enumerate(names)
        },
        boundary={width: scores_from_counts(table, names, absent, beta) for width, table in counts.boundary.items()},
        trimap={width: scores_from_counts(table, names, absent, beta) for width, table in counts.trimap.items()},
        calibration=compute_calibration(counts.bins) if counts.bins.any() else None,
        images=_image_scores(rows, tables, ids),
        slices={
            name: {
                value: scores_from_counts(table, names, absent, beta)
                for value, table in group_counts(tables, [values[row] for row in rows]).items()
            }
            for name, values in (slices or {}).items()
        },
    )


def _image_scores(rows: Sequence[int], tables: ClassCounts, ids: Mapping[int, str]) -> tuple[ImageScore, ...]:
    images = [
        ImageScore(row, ids[row], float(image_miou), float(image_aacc))
        for row, image_miou, image_aacc, table in zip(rows, miou(tables), aacc(tables), tables, strict=True)
        if table[:, TARGET].any()
    ]
    return tuple(sorted(images, key=lambda image: (image.miou, image.id)))


def results_to_dict(results: EvaluationResults) -> dict[str, Any]:
    """Returns the results as a JSON-compatible dict; nan becomes `None`."""
    values: dict[str, Any] = nan_to_none(asdict(results))
    return values
