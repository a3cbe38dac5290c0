"""The HTML page of a report: one self-contained file that needs no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.core.classes import Classes, Colour
from segray.core.html import render_page
from segray.core.visualize import Pixels, colorize
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.metrics.confusion import Confusion
from segray.evaluation.report.examples import Example, error_overlay

WIDTH = 420  # width of images in px

TEMPLATE = Path(__file__).with_name("templates") / "page.html"
MAX_LABELLED = 25
"""With more classes, the cells of the confusion matrix are too small for numbers."""
MAX_CELLS = 60
"""With more classes, the confusion matrix is rendered as an image."""
MAX_CONFUSED, MAX_IMAGES, MAX_CHANGED = 12, 15, 6
RIGHT, WRONG = np.array([47, 111, 176]), np.array([220, 38, 38])


@dataclass(frozen=True)
class Baseline:
    """A baseline model and the candidate's comparison with it."""

    model: str
    comparison: Comparison


def render_evaluation_page(
    model: str,
    evaluation: Evaluation,
    shown: Sequence[Example],
    about: Mapping[str, str],
    against: Baseline | None = None,
) -> str:
    """Returns the HTML of the page.

    Args:
        model: name of the evaluated model, as given by the user.
        evaluation: evaluation with counts and results.
        shown: example images.
        about: further information by name, such as versions.
        against: comparison with another model, if there is one.
    """
    found, classes = evaluation.results, evaluation.classes
    return render_page(
        TEMPLATE,
        model=model,
        against=against,
        most_changed=MAX_CHANGED,
        widest=_widest(against),
        evaluation=evaluation,
        found=found,
        scores=found.scores,
        about=about,
        classes=_classes(evaluation),
        matrices=[
            _matrix("Where the truth went", "a row: what the pixels of a class were taken for", evaluation, axis=1),
            _matrix("What a prediction was", "a column: what the pixels taken for a class are", evaluation, axis=0),
        ],
        names=classes.names,
        is_labelled=classes.num_classes <= MAX_LABELLED,
        is_table=classes.num_classes <= MAX_CELLS,
        confused=_confused(evaluation),
        bins=_bins(evaluation),
        histogram=_histogram([image.miou for image in found.images]),
        worst=found.images[:MAX_IMAGES],
        examples=[_example(one, classes) for one in shown],
        legend=[(name, css_color(colour)) for name, colour in zip(classes.names, classes.palette, strict=True)],
    )


def css_color(colour: Colour) -> str:
    """Returns a colour in CSS notation."""
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"


def _widest(against: Baseline | None) -> float:
    """Returns the largest absolute bound of the intervals of a comparison."""
    found = [against.comparison.miou, *against.comparison.iou.values()] if against else []
    ends = [abs(end) for one in found for end in one.interval]
    return max((end for end in ends if isfinite(end)), default=0.0)


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns a table row for each class, sorted by score in descending order, with absent classes last."""
    found, classes = evaluation.results, evaluation.classes
    true = evaluation.counts.confusion.sum(axis=1)
    lines = [
        {
            "name": name,
            "colour": css_color(colour),
            "share": pixels / max(int(true.sum()), 1),
            "interval": found.iou_intervals[name],
            **{metric: getattr(found.scores, metric)[name] for metric in ("iou", "dice", "precision", "recall")},
        }
        for name, colour, pixels in zip(classes.names, classes.palette, true.tolist(), strict=True)
    ]
    return sorted(lines, key=lambda line: (line["iou"] is None, -(line["iou"] or 0.0)))


def _matrix(heading: str, note: str, evaluation: Evaluation, *, axis: int) -> dict[str, Any]:
    """Returns the confusion matrix normalised by its rows (axis 1) or columns (axis 0), and an image of it."""
    counts: Confusion = evaluation.counts.confusion
    shares = counts / np.maximum(counts.sum(axis=axis, keepdims=True), 1)
    return {"heading": heading, "note": note, "shares": shares.tolist(), "picture": _data(_heat(shares), lossless=True)}


def _heat(shares: NDArray[np.float64]) -> Pixels:
    """Returns the fractions (K, K) as colours (K, K, 3): blue for correct, red for incorrect; darker means larger."""
    ink = np.where(np.eye(len(shares), dtype=bool)[..., None], RIGHT, WRONG)
    strength = shares[..., None] ** 0.5
    return np.asarray((255 * (1 - strength) + ink * strength).round(), np.uint8)


def _confused(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns the largest confusions: true and predicted class, and the fraction of the true class's pixels."""
    counts, names = evaluation.counts.confusion.copy(), evaluation.classes.names
    true = np.maximum(counts.sum(axis=1), 1)
    np.fill_diagonal(counts, 0)
    largest = np.argsort(counts, axis=None, kind="stable")[::-1][:MAX_CONFUSED]
    pairs = [divmod(int(index), len(names)) for index in largest]
    return [
        {
            "true": names[row],
            "found": names[column],
            "pixels": int(counts[row, column]),
            "share": counts[row, column] / true[row],
        }
        for row, column in pairs
        if counts[row, column]
    ]


def _bins(evaluation: Evaluation) -> list[dict[str, float]] | None:
    """Returns the non-empty bins of the reliability plot."""
    known = evaluation.results.calibration
    if known is None:
        return None
    columns = zip(known.accuracy, known.confidence, known.share, strict=True)
    return [
        {"left": index / NUM_BINS, "accuracy": accuracy, "confidence": confidence, "share": share}
        for index, (accuracy, confidence, share) in enumerate(columns)
        if accuracy is not None and confidence is not None
    ]


def _histogram(values: Sequence[float], bins: int = 20) -> list[int]:
    """Returns the histogram of values in 0..1 with `bins` bins of equal width."""
    counts: list[int] = np.histogram(values, bins=bins, range=(0, 1))[0].tolist()
    return counts


def _example(example: Example, classes: Classes) -> dict[str, Any]:
    pictures = {
        "image": example.image,
        "truth": colorize(example.truth, classes),
        "prediction": colorize(example.found, classes),
        "errors": error_overlay(example, classes.ignore_id),
    }
    return {
        "kind": example.kind,
        "score": example.score,
        "pictures": {
            name: _data(picture, lossless=name in {"truth", "prediction"}) for name, picture in pictures.items()
        },
    }


def _data(picture: Pixels, *, lossless: bool) -> str:
    """Returns an image as a data URI, resized to `WIDTH`."""
    image = Image.fromarray(picture)
    height = max(1, round(image.height * WIDTH / image.width))
    image = image.resize((WIDTH, height), Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
