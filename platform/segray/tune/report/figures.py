"""Figures of a sweep: learning curves, parallel coordinates, setting importances and the Pareto front."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segray.core.plots import BLUE, INK, LINE, RED, SOFT, TITLE, new_axes
from segray.tune.report.importance import Importance
from segray.tune.results import objective_values
from segray.tune.space import Dimension
from segray.tune.trial import State, Trial, objective_sign

MAX_NAMED = 12


def plot_curves(trials: Sequence[Trial], best: Trial, metric: str, last: int) -> Figure:
    """Plots the learning curve of each trial.

    The best trial is highlighted. A dot marks the end of an unfinished trial, and a cross the end of a failed one.
    """
    figure, axes = new_axes(9, 4.2)
    sign = objective_sign(metric)
    for trial in sorted(trials, key=lambda one: one is best):
        if not trial.curve:
            continue
        steps = sorted(trial.curve)
        values = [sign * trial.curve[step] for step in steps]
        colour, width = (RED, 2.2) if trial is best else (BLUE, 1.0)
        axes.plot(steps, values, color=colour, linewidth=width, alpha=1 if trial is best else 0.45)
        if trial.state is not State.FINISHED:
            mark = "x" if trial.state is State.FAILED else "o"
            axes.plot(steps[-1], values[-1], mark, color=SOFT, markersize=4)
    axes.set(xlim=(0, last * 1.02), xlabel="step", ylabel=metric)
    axes.set_title(f"curves; dots where a trial was stopped; trial {best.number}, the best, in red", **TITLE)
    return figure


def plot_parallel(space: Sequence[Dimension], trials: Sequence[Trial], best: Trial, metric: str) -> Figure:
    """Plots parallel coordinates: one axis per setting, the metric as the last axis, and one line per trial."""
    figure, axes = new_axes(1.9 * (len(space) + 1) + 1, 4.2)
    known = [trial for trial in trials if trial.best is not None]
    found = [trial.best or 0.0 for trial in known]
    low, high = min(found), max(found)
    colours = colormaps["viridis"]
    for trial in sorted(known, key=lambda one: one.best or 0.0):
        share = ((trial.best or 0.0) - low) / ((high - low) or 1)
        heights = [*(one.to_unit(trial.values[one.key]) for one in space), share]
        axes.plot(
            range(len(heights)), heights, color=colours(share), linewidth=2.4 if trial is best else 1.1, alpha=0.8
        )
    for place, dimension in enumerate(space):
        _axis(axes, place, _ticks(dimension))
    sign = objective_sign(metric)
    _axis(axes, len(space), {0.0: f"{sign * low:.3f}", 1.0: f"{sign * high:.3f}"})
    axes.set_xticks(range(len(space) + 1), [*(one.key for one in space), metric], fontsize=9, color=INK)
    axes.set(xlim=(-0.3, len(space) + 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _ticks(dimension: Dimension) -> dict[float, str]:
    """Returns the tick labels of an axis by their position, 0 to 1."""
    if dimension.is_choice:
        return {dimension.to_unit(value): str(value)[:14] for value in dimension.values[:MAX_NAMED]}
    low, high = dimension.values
    return {0.0: f"{low:.3g}", 0.5: f"{dimension.from_unit(0.5):.3g}", 1.0: f"{high:.3g}"}


def _axis(axes: Axes, place: int, ticks: dict[float, str]) -> None:
    axes.axvline(place, color=LINE, linewidth=1, zorder=0)
    for share, text in ticks.items():
        axes.text(place + 0.03, share, text, fontsize=8, color=SOFT, va="center")


def plot_importance(found: Sequence[Importance]) -> Figure:
    """Plots the importance of each setting with its standard deviation."""
    figure, axes = new_axes(8, 1 + 0.4 * len(found))
    names = [one.key for one in found][::-1]
    axes.barh(names, [one.share for one in found][::-1], color=BLUE, height=0.6)
    for place, one in enumerate(reversed(found)):
        ends = max(0.0, one.share - one.spread), min(1.0, one.share + one.spread)
        axes.plot(ends, [place, place], color=INK, linewidth=1.4, marker="|", markersize=6)
    axes.set(xlim=(0, 1), xlabel="share of the variance")
    axes.set_title("how much each setting mattered, and a standard deviation over draws of the trials", **TITLE)
    return figure


def plot_front(trials: Sequence[Trial], best: Sequence[Trial], metrics: Sequence[str]) -> Figure:
    """Plots the first two objectives of each trial, with the trials of the Pareto front joined by a line."""
    figure, axes = new_axes(6.5, 4.4)
    points = {trial.number: found for trial in trials if (found := objective_values(trial, metrics)) is not None}
    axes.scatter([point[1] for point in points.values()], [point[0] for point in points.values()], color=BLUE, s=18)
    chosen = sorted(points[trial.number] for trial in best)
    axes.plot([point[1] for point in chosen], [point[0] for point in chosen], color=RED, linewidth=1.4, marker="o")
    for trial in best:
        height, place = points[trial.number][:2]
        axes.annotate(str(trial.number), (place, height), (6, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xlabel=metrics[1], ylabel=metrics[0])
    axes.set_title("trials that no other beats in every metric", **TITLE)
    return figure
