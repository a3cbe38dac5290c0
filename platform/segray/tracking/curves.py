"""Plots the training loss and mIoU of MLflow runs over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.config import paths
from segray.core.errors import DataError, RegistryError, did_you_mean
from segray.core.logging import silence_libraries
from segray.tracking.client import error_summary, require_store

METRICS = {"train/loss": "training loss", "val/miou": "validation mean IoU"}
SMOOTHING = 0.6
"""Smoothing factor of the loss: weight of the previous running mean at each point, 0 to 1."""
DPI = 130
MAX_RUNS = 1000


@dataclass(frozen=True)
class Curve:
    """Metric curves of a run: (steps, values) for each metric."""

    name: str
    points: dict[str, tuple[list[int], list[float]]]


def load_curves(uri: str, experiment: str, runs: Sequence[str]) -> list[Curve]:
    """Loads the metric curves of runs from MLflow.

    Args:
        uri: URI of the MLflow store.
        experiment: name of the experiment.
        runs: names or ids of the runs. An empty sequence selects all training runs of the experiment.

    Raises:
        RegistryError: the store does not respond.
        DataError: the experiment or a run does not exist, or no run has values.
    """
    silence_libraries()
    require_store(uri, "runs")
    try:
        client = MlflowClient(uri, uri)
        curves = [_load_curve(client, run) for run in _find_runs(client, experiment, runs)]
    except MlflowException as error:
        raise RegistryError(f"MLflow at {paths.redact(uri)} cannot be read: {error_summary(error)}") from error
    curves = [curve for curve in curves if curve.points]
    if not curves:
        raise DataError(f"no run of experiment {experiment} has {' or '.join(METRICS)}.")
    return curves


def _find_runs(client: MlflowClient, name: str, selected: Sequence[str]) -> list[Run]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = ", ".join(experiment.name for experiment in client.search_experiments())
        raise DataError(
            f"experiment {name} does not exist; expected one of {names}; choose one with --tracking.experiment."
        )
    order = ["attribute.start_time ASC"]
    runs = client.search_runs([experiment.experiment_id], max_results=MAX_RUNS, order_by=order)
    if not selected:
        return list(runs)
    by_name = {str(run.info.run_name): run for run in runs} | {str(run.info.run_id): run for run in runs}
    missing = [run for run in selected if run not in by_name]
    if missing:
        raise DataError(f"experiment {name} has no run {missing[0]}{did_you_mean(missing[0], by_name) or '.'}")
    return [by_name[run] for run in selected]


def _load_curve(client: MlflowClient, run: Run) -> Curve:
    points = {}
    for metric in METRICS:
        if metric in run.data.metrics:
            history = sorted(client.get_metric_history(run.info.run_id, metric), key=lambda point: point.step)
            points[metric] = ([point.step for point in history], [point.value for point in history])
    return Curve(str(run.info.run_name), points)


def plot_training_curves(curves: Sequence[Curve], file: Path) -> None:
    """Writes a figure with the loss on the left and the mIoU on the right.

    The loss is drawn twice: raw values as a faint line and their running mean as a strong line.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (metric, title) in enumerate(METRICS.items(), 1):
        axes = figure.add_subplot(1, 2, position)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eceff2")
        for index, curve in enumerate(curves):
            if metric not in curve.points:
                continue
            steps, values = curve.points[metric]
            colour = f"C{index % 10}"
            if metric == "train/loss":
                axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
                axes.plot(steps, running_mean(values), color=colour, label=curve.name, linewidth=1.6)
            else:
                axes.plot(steps, values, color=colour, label=curve.name, marker="o", markersize=3, linewidth=1.6)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=DPI, facecolor="white")


def running_mean(values: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Computes the exponential running mean of values, with bias correction for the first values."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = smoothing * total + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        means.append(total / weight)
    return means
