"""Command `tune`: searches a space of settings, registers the best model and writes a report."""

import json
import shlex
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.config.paths import CONFIG_FILE, RESUME_LATEST

if TYPE_CHECKING:
    from segray.tune.finalize import SweepResult


def main() -> None:
    """Runs the command."""
    run_command(_tune)


def _tune() -> None:
    parser = CommandParser("Searches settings, stops bad trials early, and registers the best model.", with_config=True)
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    parser.add_argument("--quiet", action="store_true", help="print the result alone")
    parser.add_argument(
        "--resume", metavar="SWEEP", help="go on with a sweep: its folder, or auto for the latest alike"
    )
    flags, config = parser.parse(base=_stored)
    if flags.data:
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": flags.data})})
    console = make_console()
    quiet = make_console(quiet=True) if flags.quiet else console

    # torch, Ray and MLflow take seconds to import; `--help` and flag errors do not need them.
    from segray.cli.sweep_view import SweepProgress  # noqa: PLC0415
    from segray.tune.sweep import run_sweep  # noqa: PLC0415

    with SweepProgress(quiet) as progress:
        result = run_sweep(
            config,
            resume=flags.resume,
            say=lambda line: quiet.print(line, highlight=False),
            watch=progress.follow,
        )
    _show(console, result)
    if flags.json:
        flags.json.write_text(json.dumps(_plain(result), indent=2))


def _stored(flags: Namespace) -> list[Path]:
    """Returns the settings file of the sweep to resume, which other files and flags override."""
    if flags.resume in (None, RESUME_LATEST):
        return []
    return [file for file in (Path(flags.resume) / CONFIG_FILE,) if file.exists()]


def _show(console: Console, result: "SweepResult") -> None:
    from segray.cli.sweep_view import print_result  # noqa: PLC0415 as above
    from segray.cli.tables import print_paths  # noqa: PLC0415

    print_result(console, result)
    model = f"{result.model} version {result.version}" if result.version else "not registered, as said above"
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


def _plain(result: "SweepResult") -> dict[str, object]:
    """Returns a result as a JSON-serializable dictionary."""
    trials = [
        {
            "number": trial.number,
            "state": trial.state,
            "why": trial.reason,
            "values": trial.values,
            "best": trial.best,
            "step": trial.step,
            "others": trial.others,
            "seconds": trial.seconds,
        }
        for trial in result.trials
    ]
    told = {key: value for key, value in vars(result).items() if key not in ("trials", "best", "front", "cost")}
    front = [trial.number for trial in result.front]
    return {**told, "best": result.best.number, "front": front, "cost": asdict(result.cost), "trials": trials}
