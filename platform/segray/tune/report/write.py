"""Report of a sweep: a self-contained HTML page, and its figures as PNG files."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segray.config import Config
from segray.core import plots
from segray.core.html import render_page
from segray.core.report_folder import PAGE, stage_report
from segray.tune import results
from segray.tune.report import figures
from segray.tune.report.importance import setting_importances
from segray.tune.results import SweepCost
from segray.tune.space import dimensions
from segray.tune.trial import Trial, objective_sign

TEMPLATE = Path(__file__).with_name("templates") / "page.html"


def write_sweep_report(
    config: Config, trials: Sequence[Trial], best: Trial, seed_scores: Sequence[float], cost: SweepCost, out: Path
) -> Path:
    """Writes the report page of a sweep and its figures, and returns the path of the page.

    Args:
        config: settings of the sweep.
        trials: all trials of the sweep.
        best: best trial.
        seed_scores: best value of the first objective of the runs of the best settings with other seeds.
        cost: cost of all trials.
        out: output folder; it is created if it does not exist.

    Raises:
        DataError: the report cannot be written.
    """
    space, last_step, metrics = dimensions(config), config.train.steps, config.tune.metrics
    importances = setting_importances(space, trials, last_step)
    plotted = {
        "curves": figures.plot_curves(trials, best, metrics[0], last_step),
        "parallel": figures.plot_parallel(space, trials, best, metrics[0]),
    }
    if importances:
        plotted["importance"] = figures.plot_importance(importances)
    front = results.pareto_front(trials, metrics)
    if len(metrics) > 1:
        plotted["front"] = figures.plot_front(trials, front, metrics)
    with stage_report(out) as staging:
        files = {name: plots.save_figure(figure, staging / f"{name}.png") for name, figure in plotted.items()}
        page = render_page(
            TEMPLATE,
            config=config,
            best=best,
            best_value=objective_sign(metrics[0]) * (best.best or 0.0),
            front=[trial.number for trial in front] if len(metrics) > 1 else [],
            seed_scores=seed_scores,
            cost=cost,
            keys=[dimension.key for dimension in space],
            metrics=metrics,
            rows=_table_rows(trials, metrics),
            images={name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()},
        )
        (staging / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
    return out / PAGE


def _table_rows(trials: Sequence[Trial], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a table row for each trial, best first."""
    return [
        {
            "trial": trial,
            "best": None if trial.best is None else objective_sign(metrics[0]) * trial.best,
            "other_metrics": [trial.other_metrics.get(name) for name in metrics[1:]],
        }
        for trial in sorted(trials, key=lambda trial: (trial.best is None, -(trial.best or 0.0), trial.number))
    ]
