"""Command `tune`: searches a space of settings, registers the best model and writes a report."""

import shlex
from argparse import Namespace
from dataclasses import asdict

from rich.console import Console

from segray.cli.parser import make_console, write_json
from segray.cli.sweep_view import SweepProgress, print_result
from segray.cli.tables import print_paths
from segray.config import Config
from segray.tune.finalize import SweepResult
from segray.tune.sweep import run_sweep


def run(flags: Namespace, config: Config) -> None:
    """Runs the sweep, and prints and writes the result."""
    console, log = make_console(), make_console(flags.quiet)
    with SweepProgress(log) as progress:
        result = run_sweep(
            config,
            resume=flags.resume,
            say=lambda line: log.print(line, highlight=False),
            watch=progress.follow,
        )
    _print_result(console, result)
    write_json(flags.json, _to_dict(result))


def _print_result(console: Console, result: SweepResult) -> None:
    print_result(console, result)
    model = f"{result.model} version {result.version}" if result.version else "not registered; see above"
    console.print()
    print_paths(
        console,
        {
            "sweep": result.folder,
            "report": result.report,
            "checkpoint": result.checkpoint,
            "mlflow": f"{result.tracking_uri} run {result.run_id or 'not uploaded'}",
            "model": model,
            "next": shlex.join(["python", "pipelines/train.py", "--config", result.config]),
        },
    )


def _to_dict(result: SweepResult) -> dict[str, object]:
    """Returns a result as a JSON-serializable dictionary."""
    trials = [
        {
            "number": trial.number,
            "state": trial.state,
            "why": trial.reason,
            "values": trial.values,
            "best": trial.best,
            "step": trial.step,
            "others": trial.other_metrics,
            "seconds": trial.seconds,
        }
        for trial in result.trials
    ]
    fields = {key: value for key, value in vars(result).items() if key not in ("trials", "best", "front", "cost")}
    front = [trial.number for trial in result.front]
    return {**fields, "best": result.best.number, "front": front, "cost": asdict(result.cost), "trials": trials}
