"""The figures of the report as PNGs, for MLflow and for papers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from segray.core import plots
from segray.core.classes import Classes, Colour
from segray.core.plots import BLUE, INK, RED, SOFT, TITLE, new_axes
from segray.core.visualize import colorize
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.report.examples import Example, error_overlay

MAX_LABELLED_CLASSES = 60
"""With more classes, the axis labels of the confusion matrix are not readable."""
EXAMPLE_INCHES = 2.6


def save_figures(evaluation: Evaluation, examples: Sequence[Example], folder: Path) -> tuple[Path, ...]:
    """Writes the figures of an evaluation to a folder and returns their paths.

    Args:
        evaluation: evaluation with counts and results.
        examples: example images.
        folder: destination folder.
    """
    plotted = {
        "classes": plot_class_ious(evaluation),
        "confusion": plot_confusion(evaluation),
        "images": plot_images(evaluation),
        "examples": plot_examples(examples, evaluation.classes),
    }
    if evaluation.results.calibration:
        plotted["reliability"] = plot_reliability(evaluation)
    if evaluation.results.slices:
        plotted["slices"] = plot_slices(evaluation)
    return tuple(plots.save_figure(figure, folder / f"{name}.png") for name, figure in plotted.items())


def plot_class_ious(evaluation: Evaluation) -> Figure:
    """Plots the IoU of each class with its interval, best first."""
    results, classes = evaluation.results, evaluation.classes
    ious = [(name, iou) for name, iou in results.scores.iou.items() if iou is not None]
    ious.sort(key=lambda name_and_iou: name_and_iou[1])
    figure, axes = new_axes(8, 1 + 0.28 * len(ious))
    colours = dict(zip(classes.names, classes.palette, strict=True))
    names = [name for name, _ in ious]
    axes.barh(names, [iou for _, iou in ious], color=[_rgb(colours[name]) for name in names], height=0.7)
    for index, (name, iou) in enumerate(ious):
        interval = results.iou_intervals[name]
        if interval:
            axes.plot(interval, [index, index], color=INK, linewidth=1.4, marker="|", markersize=6)
        axes.text(1.02, index, f"{iou:.3f}", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    mean = f"{results.scores.miou:.4f} [{results.miou_interval.low:.4f}, {results.miou_interval.high:.4f}]"
    axes.set_title(f"Per-class IoU with 95% bootstrap interval (mean {mean})", **TITLE)
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """Plots the confusion matrix, normalised by rows and by columns."""
    counts, names = evaluation.counts.confusion, evaluation.classes.names
    side = 2.5 + 0.22 * min(len(names), MAX_LABELLED_CLASSES)
    figure = Figure(figsize=(2 * side, side))
    figure.set_layout_engine("constrained", h_pad=0.15)  # the titles would touch the edge
    titles = {1: "Confusion matrix, rows normalised", 0: "Confusion matrix, columns normalised"}
    for position, (axis, title) in enumerate(titles.items(), 1):
        axes = figure.add_subplot(1, 2, position)
        shares = counts / np.maximum(counts.sum(axis=axis, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("prediction", color=SOFT)
        axes.set_ylabel("ground truth", color=SOFT)
        if len(names) <= MAX_LABELLED_CLASSES:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
    return figure


def plot_reliability(evaluation: Evaluation) -> Figure:
    """Plots accuracy by confidence. Darker bars represent more pixels."""
    calibration = evaluation.results.calibration
    assert calibration is not None
    figure, axes = new_axes(4.4, 4.4)
    for index, (accuracy, share) in enumerate(zip(calibration.accuracy, calibration.share, strict=True)):
        if accuracy is not None:
            x, width = index / NUM_BINS, 0.94 / NUM_BINS
            axes.bar(x, accuracy, width, align="edge", color=BLUE, alpha=0.25 + 0.75 * share**0.5)
    axes.plot([0, 1], [0, 1], color=RED, linewidth=1.2, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"Reliability diagram (ECE {calibration.ece:.4f})", **TITLE)
    return figure


def plot_images(evaluation: Evaluation) -> Figure:
    """Plots the histogram of the images' mean IoU."""
    figure, axes = new_axes(6, 3.2)
    axes.hist([image.miou for image in evaluation.results.images], bins=20, range=(0, 1), color=BLUE, rwidth=0.92)
    axes.set(xlim=(0, 1), xlabel="mean IoU of an image", ylabel="number of images")
    axes.set_title(f"Histogram of mean IoU per image ({len(evaluation.results.images)} images)", **TITLE)
    return figure


def plot_slices(evaluation: Evaluation) -> Figure:
    """Plots the mean IoU of each value of each slice."""
    bars = [
        (f"{name} {value}", scores.miou)
        for name, values in evaluation.results.slices.items()
        for value, scores in values.items()
    ]
    figure, axes = new_axes(8, 1 + 0.28 * len(bars))
    axes.barh([label for label, _ in bars][::-1], [miou for _, miou in bars][::-1], color=BLUE, height=0.7)
    axes.set_xlim(0, 1)
    axes.set_title("Mean IoU by slice", **TITLE)
    return figure


def plot_examples(examples: Sequence[Example], classes: Classes) -> Figure:
    """Plots one row per image: image, truth, prediction and errors, with a legend of the classes' colours below."""
    titles = ("image", "ground truth", "prediction", "errors")
    height = EXAMPLE_INCHES * 0.8 * len(examples) + 0.25 * (1 + len(classes.names) // 6)
    figure = Figure(figsize=(4 * EXAMPLE_INCHES, height), layout="constrained")
    for row, example in enumerate(examples):
        pictures = (
            example.image,
            colorize(example.truth, classes),
            colorize(example.prediction, classes),
            error_overlay(example, classes.ignore_id),
        )
        for column, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
            axes = figure.add_subplot(len(examples), 4, row * 4 + column + 1)
            axes.imshow(picture)
            axes.axis("off")
            score = f"{example.kind}: {example.score.id}, {example.score.miou:.3f}"
            axes.set_title(title if column else score, loc="left", fontsize=8, color=INK)
    names, palette = classes.names[:MAX_LABELLED_CLASSES], classes.palette[:MAX_LABELLED_CLASSES]
    handles = [_patch(colour) for colour in palette]
    figure.legend(handles, names, loc="outside lower left", ncols=6, fontsize=7, frameon=False)
    return figure


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (channel / 255 for channel in colour)
    return red, green, blue


def _patch(colour: Colour) -> Patch:
    return Patch(facecolor=_rgb(colour), edgecolor="#999", linewidth=0.4)
