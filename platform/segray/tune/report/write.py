"""Report of a sweep: a self-contained HTML page, and its figures as PNG files."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segray.config import Config
from segray.core import plots
from segray.core.errors import DataError
from segray.core.html import render_page
from segray.tune import results
from segray.tune.report import figures
from segray.tune.report.importance import setting_importances
from segray.tune.results import SweepCost
from segray.tune.space import dimensions
from segray.tune.trial import Trial, objective_sign

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("templates") / "page.html"


def write_sweep_report(
    config: Config, trials: Sequence[Trial], best: Trial, seeds: Sequence[float], cost: SweepCost, out: Path
) -> Path:
    """Writes the report page of a sweep and its figures, and returns the path of the page.

    Args:
        config: settings of the sweep.
        trials: all trials of the sweep.
        best: best trial.
        seeds: val/miou of the runs of the best settings with other seeds.
        cost: cost of all trials.
        out: output folder; it is created if it does not exist.

    Raises:
        DataError: the report cannot be written.
    """
    space, last, metrics = dimensions(config), config.train.steps, config.tune.metrics
    important = setting_importances(space, trials, last)
    drawn = {
        "curves": figures.plot_curves(trials, best, metrics[0], last),
        "parallel": figures.plot_parallel(space, trials, best, metrics[0]),
    }
    if important:
        drawn["importance"] = figures.plot_importance(important)
    front = results.pareto_front(trials, metrics)
    if len(metrics) > 1:
        drawn["front"] = figures.plot_front(trials, front, metrics)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = {name: plots.save_figure(figure, out / f"{name}.png") for name, figure in drawn.items()}
        page = render_page(
            TEMPLATE,
            config=config,
            best=best,
            best_value=objective_sign(metrics[0]) * (best.best or 0.0),
            front=[trial.number for trial in front] if len(metrics) > 1 else [],
            seeds=seeds,
            cost=cost,
            keys=[one.key for one in space],
            metrics=metrics,
            lines=_lines(trials, metrics),
            important=important,
            pictures={name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()},
        )
        (out / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error
    return out / PAGE


def _lines(trials: Sequence[Trial], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a table row for each trial, best first."""
    return [
        {
            "trial": trial,
            "best": None if trial.best is None else objective_sign(metrics[0]) * trial.best,
            "others": [trial.other_metrics.get(name) for name in metrics[1:]],
        }
        for trial in sorted(trials, key=lambda one: (one.best is None, -(one.best or 0.0), one.number))
    ]
