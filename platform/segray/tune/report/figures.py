"""Figures of a sweep: learning curves, parallel coordinates, hyperparameter importance and the Pareto front."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segray.core.plots import BLUE, INK, LINE, RED, SOFT, TITLE, new_axes
from segray.tune.report.importance import Importance
from segray.tune.results import objective_values
from segray.tune.space import Dimension
from segray.tune.trial import State, Trial, objective_sign

MAX_TICKS = 12
"""Maximum number of choices that an axis labels."""


def plot_curves(trials: Sequence[Trial], best: Trial, metric: str, last_step: int) -> Figure:
    """Plots the learning curve of each trial.

    The best trial is highlighted. A dot marks the end of an unfinished trial, and a cross the end of a failed one.
    """
    figure, axes = new_axes(9, 4.2)
    sign = objective_sign(metric)
    for trial in sorted(trials, key=lambda trial: trial is best):
        if not trial.curve:
            continue
        steps = sorted(trial.curve)
        values = [sign * trial.curve[step] for step in steps]
        colour, width = (RED, 2.2) if trial is best else (BLUE, 1.0)
        axes.plot(steps, values, color=colour, linewidth=width, alpha=1 if trial is best else 0.45)
        if trial.state is not State.FINISHED:
            marker = "x" if trial.state is State.FAILED else "o"
            axes.plot(steps[-1], values[-1], marker, color=SOFT, markersize=4)
    axes.set(xlim=(0, last_step * 1.02), xlabel="step", ylabel=metric)
    axes.set_title(f"Learning curves (red: best trial {best.number}; dot: stopped; cross: failed)", **TITLE)
    return figure


def plot_parallel(space: Sequence[Dimension], trials: Sequence[Trial], best: Trial, metric: str) -> Figure:
    """Plots parallel coordinates: one axis per setting, the metric as the last axis, and one line per trial."""
    figure, axes = new_axes(1.9 * (len(space) + 1) + 1, 4.2)
    values = {trial.number: trial.best for trial in trials if trial.best is not None}
    low, high = min(values.values()), max(values.values())
    colours = colormaps["viridis"]
    validated = [trial for trial in trials if trial.number in values]
    for trial in sorted(validated, key=lambda trial: values[trial.number]):
        position = (values[trial.number] - low) / ((high - low) or 1)
        positions = [*(dimension.to_unit(trial.values[dimension.key]) for dimension in space), position]
        width = 2.4 if trial is best else 1.1
        axes.plot(range(len(positions)), positions, color=colours(position), linewidth=width, alpha=0.8)
    for index, dimension in enumerate(space):
        _draw_axis(axes, index, _ticks(dimension))
    sign = objective_sign(metric)
    _draw_axis(axes, len(space), {0.0: f"{sign * low:.3f}", 1.0: f"{sign * high:.3f}"})
    axes.set_xticks(range(len(space) + 1), [*(dimension.key for dimension in space), metric], fontsize=9, color=INK)
    axes.set_title("Parallel coordinates (yellow: best objective)", **TITLE)
    axes.set(xlim=(-0.3, len(space) + 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _ticks(dimension: Dimension) -> dict[float, str]:
    """Returns the tick labels of an axis by their position, 0 to 1."""
    if dimension.is_choice:
        return {dimension.to_unit(value): str(value)[:14] for value in dimension.values[:MAX_TICKS]}
    low, high = dimension.values
    return {0.0: f"{low:.3g}", 0.5: f"{dimension.from_unit(0.5):.3g}", 1.0: f"{high:.3g}"}


def _draw_axis(axes: Axes, x: int, ticks: dict[float, str]) -> None:
    axes.axvline(x, color=LINE, linewidth=1, zorder=0)
    for position, label in ticks.items():
        axes.text(x + 0.03, position, label, fontsize=8, color=SOFT, va="center")


def plot_importance(importances: Sequence[Importance]) -> Figure:
    """Plots the importance of each setting with its standard deviation."""
    figure, axes = new_axes(8, 1 + 0.4 * len(importances))
    ascending = importances[::-1]
    axes.barh([bar.key for bar in ascending], [bar.mean for bar in ascending], color=BLUE, height=0.6)
    for y, bar in enumerate(ascending):
        error_bar = max(0.0, bar.mean - bar.deviation), min(1.0, bar.mean + bar.deviation)
        axes.plot(error_bar, [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
    axes.set(xlim=(0, 1), xlabel="explained fraction of the variance")
    axes.set_title("Hyperparameter importance (fANOVA, mean and standard deviation)", **TITLE)
    return figure


def plot_front(trials: Sequence[Trial], front: Sequence[Trial], metrics: Sequence[str]) -> Figure:
    """Plots the first two objectives of each trial, with the trials of the Pareto front joined by a line."""
    figure, axes = new_axes(6.5, 4.4)
    points = {trial.number: values for trial in trials if (values := objective_values(trial, metrics)) is not None}
    axes.scatter([point[1] for point in points.values()], [point[0] for point in points.values()], color=BLUE, s=18)
    front_points = sorted(points[trial.number] for trial in front)
    x, y = [point[1] for point in front_points], [point[0] for point in front_points]
    axes.plot(x, y, color=RED, linewidth=1.4, marker="o")
    for trial in front:
        position = points[trial.number][1], points[trial.number][0]
        axes.annotate(str(trial.number), position, (6, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xlabel=metrics[1], ylabel=metrics[0])
    axes.set_title("Pareto front (red, with trial numbers)", **TITLE)
    return figure
