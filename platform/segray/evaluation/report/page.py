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
from segray.core.visualize import Pixels, colorize, fit_size
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.metrics.confusion import Confusion
from segray.evaluation.report.examples import Example, error_overlay

WIDTH, MAX_HEIGHT = 420, 1680  # size of images in px

TEMPLATE = Path(__file__).with_name("templates") / "page.html"
MAX_LABELLED = 25
"""With more classes, the cells of the confusion matrix are too small for numbers."""
MAX_CELLS = 60
"""With more classes, the confusion matrix is rendered as an image."""
MAX_CONFUSIONS, MAX_IMAGES, MAX_CHANGED = 12, 15, 6
CORRECT, INCORRECT = np.array([47, 111, 176]), np.array([220, 38, 38])


@dataclass(frozen=True)
class Baseline:
    """A baseline model and the candidate's comparison with it."""

    model: str
    comparison: Comparison


def render_evaluation_page(
    model: str,
    evaluation: Evaluation,
    examples: Sequence[Example],
    metadata: Mapping[str, str],
    baseline: Baseline | None = None,
) -> str:
    """Returns the HTML of the page.

    Args:
        model: name of the evaluated model, as the user passed it.
        evaluation: evaluation with counts and results.
        examples: example images.
        metadata: further information by name, such as versions of libraries.
        baseline: comparison with another model, if there is one.
    """
    results, classes = evaluation.results, evaluation.classes
    return render_page(
        TEMPLATE,
        model=model,
        baseline=baseline,
        max_changed=MAX_CHANGED,
        max_bound=_max_interval_bound(baseline),
        evaluation=evaluation,
        results=results,
        scores=results.scores,
        metadata=metadata,
        classes=_class_rows(evaluation),
        matrices=[
            _matrix(
                "Confusion matrix, rows normalised",
                "Each row sums to 100%; the diagonal is the recall.",
                evaluation,
                axis=1,
            ),
            _matrix(
                "Confusion matrix, columns normalised",
                "Each column sums to 100%; the diagonal is the precision.",
                evaluation,
                axis=0,
            ),
        ],
        names=classes.names,
        is_labelled=classes.num_classes <= MAX_LABELLED,
        is_table=classes.num_classes <= MAX_CELLS,
        confusions=_confusions(evaluation),
        bins=_bins(evaluation),
        histogram=_histogram([image.miou for image in results.images]),
        worst=results.images[:MAX_IMAGES],
        examples=[_example(example, classes) for example in examples],
        legend=[(name, css_color(colour)) for name, colour in zip(classes.names, classes.palette, strict=True)],
    )


def css_color(colour: Colour) -> str:
    """Returns a colour in CSS notation."""
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"


def _max_interval_bound(baseline: Baseline | None) -> float:
    """Returns the largest absolute bound of the intervals of a comparison."""
    deltas = [baseline.comparison.miou, *baseline.comparison.iou.values()] if baseline else []
    bounds = [abs(bound) for delta in deltas for bound in delta.interval]
    return max((bound for bound in bounds if isfinite(bound)), default=0.0)


def _class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns a table row for each class, sorted by score in descending order, with absent classes last."""
    results, classes = evaluation.results, evaluation.classes
    true_pixels = evaluation.counts.confusion.sum(axis=1)
    rows = [
        {
            "name": name,
            "colour": css_color(colour),
            "share": pixels / max(int(true_pixels.sum()), 1),
            "interval": results.iou_intervals[name],
            **{metric: getattr(results.scores, metric)[name] for metric in ("iou", "dice", "precision", "recall")},
        }
        for name, colour, pixels in zip(classes.names, classes.palette, true_pixels.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: (row["iou"] is None, -(row["iou"] or 0.0)))


def _matrix(heading: str, note: str, evaluation: Evaluation, *, axis: int) -> dict[str, Any]:
    """Returns the confusion matrix normalised by its rows (axis 1) or columns (axis 0), and an image of it."""
    counts: Confusion = evaluation.counts.confusion
    shares = counts / np.maximum(counts.sum(axis=axis, keepdims=True), 1)
    picture = _data_uri(_heatmap(shares), lossless=True)
    return {"heading": heading, "note": note, "shares": shares.tolist(), "picture": picture}


def _heatmap(shares: NDArray[np.float64]) -> Pixels:
    """Returns the fractions (K, K) as colours (K, K, 3): blue for correct, red for incorrect; darker means larger."""
    colour = np.where(np.eye(len(shares), dtype=bool)[..., None], CORRECT, INCORRECT)
    strength = shares[..., None] ** 0.5
    return np.asarray((255 * (1 - strength) + colour * strength).round(), np.uint8)


def _confusions(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns the largest confusions: true and predicted class, and the fraction of the true class's pixels."""
    counts, names = evaluation.counts.confusion.copy(), evaluation.classes.names
    true_pixels = np.maximum(counts.sum(axis=1), 1)
    np.fill_diagonal(counts, 0)
    largest = np.argsort(counts, axis=None, kind="stable")[::-1][:MAX_CONFUSIONS]
    pairs = [divmod(int(index), len(names)) for index in largest]
    return [
        {
            "truth": names[row],
            "prediction": names[column],
            "pixels": int(counts[row, column]),
            "share": counts[row, column] / true_pixels[row],
        }
        for row, column in pairs
        if counts[row, column]
    ]


def _bins(evaluation: Evaluation) -> list[dict[str, float]] | None:
    """Returns the non-empty bins of the reliability diagram."""
    calibration = evaluation.results.calibration
    if calibration is None:
        return None
    columns = zip(calibration.accuracy, calibration.confidence, calibration.share, strict=True)
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
        "ground truth": colorize(example.truth, classes),
        "prediction": colorize(example.prediction, classes),
        "errors": error_overlay(example, classes.ignore_id),
    }
    return {
        "kind": example.kind,
        "score": example.score,
        "pictures": {
            name: _data_uri(picture, lossless=name in {"ground truth", "prediction"})
            for name, picture in pictures.items()
        },
    }


def _data_uri(picture: Pixels, *, lossless: bool) -> str:
    """Returns an image as a data URI, resized to `WIDTH`, or to `MAX_HEIGHT` if it is very tall."""
    image = Image.fromarray(picture)
    size = fit_size(image.width, image.height, WIDTH, MAX_HEIGHT)
    image = image.resize(size, Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
