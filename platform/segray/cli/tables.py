"""Tables on the terminal: scores by class, comparisons, promotion decisions and paths."""

from collections.abc import Mapping
from math import isnan

from rich.console import Console
from rich.table import Table

from segray.evaluation.compare import Comparison, MetricDelta
from segray.evaluation.metrics.bootstrap import Interval
from segray.evaluation.metrics.scores import Scores
from segray.evaluation.results import EvaluationResults
from segray.promotion.gates import Decision

MAX_IMAGES = 3
SPELT = {
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
    console.print(_by_class(scores, {}))
    console.print(f"mIoU {scores.miou:.4f}   mAcc {scores.macc:.4f}   aAcc {scores.aacc:.4f}", highlight=False)
    _show_notes(console, scores)


def print_results(console: Console, title: str, found: EvaluationResults, drawn: str = "images") -> None:
    """Prints the scores of each class with 95% intervals, the means, and all other metrics.

    Args:
        console: console to print to.
        title: heading of the table.
        found: results of the evaluation.
        drawn: name of the units that the bootstrap resamples.
    """
    scores, (low, high) = found.scores, found.miou_interval
    console.print(title, style="bold", highlight=False)
    console.print(_by_class(scores, found.iou_intervals))
    console.print(f"mIoU {scores.miou:.4f} [{low:.4f}, {high:.4f}], 95% over {drawn}", highlight=False)
    means = ("mdice", "mprecision", "macc", "aacc", "fwiou", "kappa")
    console.print("   ".join(f"{SPELT[name]} {getattr(scores, name):.4f}" for name in means), highlight=False)
    if found.calibration:
        console.print(f"ECE {found.calibration.ece:.4f}   largest gap {found.calibration.mce:.4f}", highlight=False)
    for title_, bands in (("boundary IoU", found.boundary), ("trimap IoU", found.trimap)):
        for width, band in bands.items():
            console.print(f"{title_} within {width} px {band.miou:.4f}", highlight=False)
    for name, values in found.slices.items():
        console.print(_by_value(name, values))
    _show_notes(console, scores)


def print_comparison(console: Console, found: Comparison, ours: str, theirs: str) -> None:
    """Prints the gain of a model over another, by class and by image, and the conclusion."""
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("class")
    for title in ("this model", "the other", "gain", "95%"):
        table.add_column(title, justify="right")
    table.add_column("")
    for name, one in found.iou.items():
        told = ("better" if one.delta > 0 else "worse") if one.is_significant else ""
        table.add_row(name, *_gain(one), told)
    console.print(table)
    console.print(
        f"images: {len(found.improved)} better, {len(found.regressed)} worse, of {len(found.images)}; "
        f"mean of the images' own mIoU {_spelt_gain(found.image_miou)}",
        highlight=False,
    )
    for title, images in (("most gained", found.improved), ("most lost", found.regressed)):
        for image in images[:MAX_IMAGES]:
            console.print(f"  {title}  {image.id}  {image.baseline:.4f} -> {image.candidate:.4f}", highlight=False)
    console.print(found.summary_line(ours, theirs), style="bold", highlight=False)


def print_decision(console: Console, decision: Decision, split: str, rows: int) -> None:
    """Prints the decision on a challenger, one line per gate."""
    against = f"against champion {decision.champion}" if decision.champion else "no champion to compare with"
    console.print(f"version {decision.challenger} on {split}, {rows} images, {against}", style="bold", highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="")
    for title in ("", "gate", "observed", "expected"):
        table.add_column(title)
    for check in decision.checks:
        table.add_row("ok" if check.is_passed else "no", check.gate, check.observed, check.expected)
    console.print(table)


def _gain(one: MetricDelta) -> tuple[str, str, str, str]:
    figures = [None if isnan(value) else value for value in (one.candidate, one.baseline)]
    if None in figures:
        return _number(figures[0]), _number(figures[1]), "-", ""
    return (
        _number(one.candidate),
        _number(one.baseline),
        f"{one.delta:+.4f}",
        f"{one.interval.low:+.4f} {one.interval.high:+.4f}",
    )


def _spelt_gain(one: MetricDelta) -> str:
    return f"{one.delta:+.4f} [{one.interval.low:+.4f}, {one.interval.high:+.4f}]"


def _by_class(scores: Scores, intervals: Mapping[str, Interval | None]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    if intervals:
        table.add_column("95%", justify="right")
        table.add_column("precision", justify="right")
        table.add_column("recall", justify="right")
    table.add_column("", justify="left")
    for name, iou in scores.iou.items():
        within = intervals.get(name)
        more = [
            f"{within.low:.2f}-{within.high:.2f}" if within else "",
            *(_number(values[name]) for values in (scores.precision, scores.recall)),
        ]
        bar = "absent" if iou is None else "█" * round(iou * 24)
        table.add_row(name, _number(iou), *(more if intervals else []), bar)
    return table


def _by_value(name: str, values: Mapping[str, Scores]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column(name)
    for title in ("mIoU", "aAcc", "pixels"):
        table.add_column(title, justify="right")
    for value, scores in values.items():
        table.add_row(value, _number(scores.miou), _number(scores.aacc), f"{scores.pixels:,}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show_notes(console: Console, scores: Scores) -> None:
    if scores.absent:
        console.print(f"absent from truth and prediction, not counted: {', '.join(scores.absent)}")
    if scores.without_truth:
        console.print(f"predicted but never true, counted as 0: {', '.join(scores.without_truth)}")


def print_paths(console: Console, rows: dict[str, str]) -> None:
    """Prints names and locations, one per line, without cropping or wrapping, so that they can be copied."""
    width = max(len(name) for name in rows)
    for name, place in rows.items():
        console.print(f"{name:<{width}}  {place}", highlight=False, soft_wrap=True)
