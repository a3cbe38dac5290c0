"""What the counts of an evaluation say: scores with intervals, near contours, of images and of slices of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
    """How well one image was segmented.

    Attributes:
        row: its number in the split.
        id: in the dataset.
        miou: mean IoU over the classes that are true or predicted in it.
        aacc: share of its counted pixels that are right.
    """

    row: int
    id: str
    miou: float
    aacc: float


@dataclass(frozen=True)
class EvaluationResults:
    """What the counts say.

    Attributes:
        scores: of all images.
        miou_interval: 95% of the bootstrap over images.
        iou_intervals: of each class; none where it is absent.
        boundary: mean and by-class scores within each width of each class's contours.
        trimap: of the pixels within each width of the truth's contours.
        calibration: how sure the model is, none where it was not counted.
        images: worst first, those without a counted pixel left out.
        slices: by name and value.
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
    count: int = NUM_RESAMPLES,
) -> EvaluationResults:
    """Returns what counts say.

    Args:
        counts: with the images' own.
        names: of the classes.
        ids: of the rows.
        slices: by name, the value of each row.
        groups: of the rows, drawn as one by the bootstrap; none draws images.
        absent: what absent classes are to the means.
        beta: of the F-score.
        count: samples of the bootstrap.
    """
    rows = sorted(counts.images)
    tables = np.stack([counts.images[row].dense(len(names)) for row in rows])
    drawn = bootstrap(sum_by_group(tables, rows, groups), lambda table: miou_and_ious(table, absent), count)
    whole = scores_from_confusion(counts.confusion, names, absent, beta)
    return EvaluationResults(
        scores=whole,
        miou_interval=percentile_interval(drawn[:, 0]),
        iou_intervals={
            name: None if whole.iou[name] is None else percentile_interval(drawn[:, index + 1])
            for index, name in enumerate(names)
        },
        boundary={width: scores_from_counts(table, names, absent, beta) for width, table in counts.boundary.items()},
        trimap={width: scores_from_counts(table, names, absent, beta) for width, table in counts.trimap.items()},
        calibration=compute_calibration(counts.bins) if counts.bins.any() else None,
        images=_images(rows, tables, ids),
        slices={
            name: {
                value: scores_from_counts(table, names, absent, beta)
                for value, table in group_counts(list(tables), [of_row[row] for row in rows]).items()
            }
            for name, of_row in (slices or {}).items()
        },
    )


def _images(rows: Sequence[int], tables: ClassCounts, ids: Mapping[int, str]) -> tuple[ImageScore, ...]:
    means = miou(tables)
    rights = aacc(tables)
    found = [
        ImageScore(row, ids[row], float(one), float(right))
        for row, one, right, table in zip(rows, means, rights, tables, strict=True)
        if table[:, TARGET].any()
    ]
    return tuple(sorted(found, key=lambda image: (image.miou, image.id)))


def results_to_dict(found: EvaluationResults) -> dict[str, Any]:
    """Returns the findings for programs; what is not a number is none."""
    written: dict[str, Any] = _plain(asdict(found))
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value
