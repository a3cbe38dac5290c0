"""What the counts of an evaluation say: scores with intervals, near contours, of images and of slices of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segray.counting import Counts
from segray.metrics.calibration import Calibration, calibration
from segray.metrics.counts import TRUE, Table
from segray.metrics.intervals import DRAWS, Interval, draws, grouped, interval, ious, miou
from segray.metrics.scores import Absent, Scores, aacc, by_group, scores, scores_of


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
class Findings:
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


def findings(
    counts: Counts,
    names: Sequence[str],
    ids: Mapping[int, str],
    slices: Mapping[str, Mapping[int, str]] | None = None,
    *,
    groups: Mapping[int, str] | None = None,
    absent: Absent = "skip",
    beta: float = 1.0,
    count: int = DRAWS,
) -> Findings:
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
    tables = np.stack([counts.images[row].whole(len(names)) for row in rows])
    drawn = draws(grouped(tables, rows, groups), lambda table: ious(table, absent), count)
    whole = scores(counts.confusion, names, absent, beta)
    return Findings(
        scores=whole,
        miou_interval=interval(drawn[:, 0]),
        iou_intervals={
            name: None if whole.iou[name] is None else interval(drawn[:, index + 1]) for index, name in enumerate(names)
        },
        boundary={width: scores_of(table, names, absent, beta) for width, table in counts.boundary.items()},
        trimap={width: scores_of(table, names, absent, beta) for width, table in counts.trimap.items()},
        calibration=calibration(counts.bins) if counts.bins.any() else None,
        images=_images(rows, tables, ids),
        slices={
            name: {
                value: scores_of(table, names, absent, beta)
                for value, table in by_group(list(tables), [of_row[row] for row in rows]).items()
            }
            for name, of_row in (slices or {}).items()
        },
    )


def _images(rows: Sequence[int], tables: Table, ids: Mapping[int, str]) -> tuple[ImageScore, ...]:
    means = miou(tables)
    rights = aacc(tables)
    found = [
        ImageScore(row, ids[row], float(one), float(right))
        for row, one, right, table in zip(rows, means, rights, tables, strict=True)
        if table[:, TRUE].any()
    ]
    return tuple(sorted(found, key=lambda image: (image.miou, image.id)))


def as_json(found: Findings) -> dict[str, Any]:
    """Returns the findings for programs; what is not a number is none."""
    written: dict[str, Any] = _plain(asdict(found))
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value
