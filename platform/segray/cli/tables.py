"""Tables on the terminal: scores by class, comparisons, promotion decisions and paths."""

from collections.abc import Mapping
from math import isnan

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from segray.evaluation.compare import Comparison, MetricDelta
from segray.evaluation.metrics.bootstrap import Interval
from segray.evaluation.metrics.scores import Scores
from segray.evaluation.results import EvaluationResults
from segray.promotion.gates import Decision

MAX_IMAGES = 3
BAR_WIDTH = 24
METRIC_NAMES = {
    "mdice": "mDice",
    "mprecision": "mPrecision",
    "macc": "mAcc",
    "aacc": "aAcc",
    "fwiou": "fwIoU",
    "kappa": "kappa",
}


def print_scores(console: Console, title: str, scores: Scores) -> None:
    """Prints the IoU of each class and the means."""
    console.print(title, style="bold", highlight=False)
    console.print(_class_table(scores, {}))
    console.print(f"mIoU {scores.miou:.4f}   mAcc {scores.macc:.4f}   aAcc {scores.aacc:.4f}", highlight=False)
    _print_notes(console, scores)


def print_results(console: Console, title: str, results: EvaluationResults, units: str = "images") -> None:
    """Prints the scores of each class with 95% intervals, the means, and all other metrics.

    Args:
        console: console to print to.
        title: heading of the table.
        results: results of the evaluation.
        units: name of the units that the bootstrap resamples.
    """
    scores, (low, high) = results.scores, results.miou_interval
    console.print(title, style="bold", highlight=False)
    console.print(_class_table(scores, results.iou_intervals))
    console.print(f"mIoU {scores.miou:.4f} [{low:.4f}, {high:.4f}], 95% interval over {units}", highlight=False)
    console.print(
        "   ".join(f"{METRIC_NAMES[name]} {getattr(scores, name):.4f}" for name in METRIC_NAMES), highlight=False
    )
    if results.calibration:
        console.print(f"ECE {results.calibration.ece:.4f}   MCE {results.calibration.mce:.4f}", highlight=False)
    for metric, bands in (("boundary IoU", results.boundary), ("trimap IoU", results.trimap)):
        for width, band in bands.items():
            console.print(f"{metric} within {width} px {band.miou:.4f}", highlight=False)
    for name, values in results.slices.items():
        console.print(_slice_table(name, values))
    _print_notes(console, scores)


def print_comparison(console: Console, comparison: Comparison, candidate: str, baseline: str) -> None:
    """Prints the difference of the candidate from the baseline, by class and by image, and the conclusion."""
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("class")
    for title in ("candidate", "baseline", "difference", "95% interval"):
        table.add_column(title, justify="right")
    table.add_column("")
    for name, delta in comparison.iou.items():
        conclusion = ("better" if delta.delta > 0 else "worse") if delta.is_significant else ""
        table.add_row(name, *_difference_cells(delta), conclusion)
    console.print(table)
    console.print(
        f"{len(comparison.improved)} of {len(comparison.images)} images improved, "
        f"{len(comparison.regressed)} regressed; "
        f"difference in the average of the per-image mIoU {_format_difference(comparison.image_miou)}",
        highlight=False,
    )
    for title, images in (("largest improvement", comparison.improved), ("largest regression", comparison.regressed)):
        for image in images[:MAX_IMAGES]:
            console.print(f"  {title}  {image.id}  {image.baseline:.4f} -> {image.candidate:.4f}", highlight=False)
    console.print(comparison.summary_line(candidate, baseline), style="bold", highlight=False)


def print_decision(console: Console, decision: Decision, split: str, rows: int) -> None:
    """Prints the decision on a challenger, one line per gate."""
    against = f"against champion {decision.champion}" if decision.champion else "no champion to compare with"
    console.print(f"version {decision.challenger} on {split}, {rows} images, {against}", style="bold", highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="")
    for title in ("", "gate", "observed", "expected"):
        table.add_column(title)
    for check in decision.checks:
        table.add_row("pass" if check.is_passed else "fail", check.gate, check.observed, check.expected)
    console.print(table)


def _difference_cells(delta: MetricDelta) -> tuple[str, str, str, str]:
    candidate, baseline = _format_score(delta.candidate), _format_score(delta.baseline)
    if isnan(delta.delta):
        return candidate, baseline, "-", ""
    return candidate, baseline, f"{delta.delta:+.4f}", f"{delta.interval.low:+.4f} {delta.interval.high:+.4f}"


def _format_difference(delta: MetricDelta) -> str:
    return f"{delta.delta:+.4f} [{delta.interval.low:+.4f}, {delta.interval.high:+.4f}]"


def _class_table(scores: Scores, intervals: Mapping[str, Interval | None]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    if intervals:
        table.add_column("95% interval", justify="right")
        table.add_column("precision", justify="right")
        table.add_column("recall", justify="right")
    table.add_column("", max_width=BAR_WIDTH)
    for name, iou in scores.iou.items():
        interval = intervals.get(name)
        cells = [
            f"{interval.low:.2f}-{interval.high:.2f}" if interval else "",
            *(_format_score(values[name]) for values in (scores.precision, scores.recall)),
        ]
        bar = "absent" if iou is None else Bar(1, 0, iou)
        table.add_row(name, _format_score(iou), *(cells if intervals else []), bar)
    return table


def _slice_table(name: str, values: Mapping[str, Scores]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column(name)
    for title in ("mIoU", "aAcc", "pixels"):
        table.add_column(title, justify="right")
    for value, scores in values.items():
        table.add_row(value, _format_score(scores.miou), _format_score(scores.aacc), f"{scores.pixels:,}")
    return table


def _format_score(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.4f}"


def _print_notes(console: Console, scores: Scores) -> None:
    if scores.absent:
        console.print(f"classes in neither ground truth nor predictions: {', '.join(scores.absent)}")
    if scores.without_truth:
        console.print(f"classes predicted without ground truth, IoU 0: {', '.join(scores.without_truth)}")


def print_paths(console: Console, rows: dict[str, str]) -> None:
    """Prints names and locations, one per line, without cropping or wrapping, so that they can be copied."""
    width = max(len(name) for name in rows)
    for name, location in rows.items():
        console.print(f"{name:<{width}}  {location}", highlight=False, soft_wrap=True)
