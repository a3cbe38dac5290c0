"""Command `train`: trains, validates and registers a model."""

import json
import shlex
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.config import DataConfig
from segray.config.paths import CONFIG_FILE, RESUME_LATEST
from segray.core.errors import DataError

if TYPE_CHECKING:
    from segray.training.fit import TrainResult

NEXT_COMMAND = ("python", "pipelines/evaluate.py")


def main() -> None:
    """Runs the command."""
    run_command(_train)


def _train() -> None:
    parser = CommandParser(
        "Trains SegFormer on a prepared dataset and registers the best checkpoint.", with_config=True
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    parser.add_argument("--quiet", action="store_true", help="print the result alone")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, or auto for the latest alike")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="with --resume: a setting, dataset or classes that may differ from the run's start",
    )
    flags, config = parser.parse(base=_stored)
    if flags.data:
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": flags.data})})
    console = make_console()
    quiet = make_console(quiet=True) if flags.quiet else console
    # torch, Ray and MLflow take seconds to import; `--help` and flag errors do not need them.
    from segray.cli.progress import TrainingProgress  # noqa: PLC0415
    from segray.training.fit import fit  # noqa: PLC0415

    with TrainingProgress(quiet, config.train.steps) as progress:
        result = fit(
            config,
            resume=flags.resume,
            allowed=[name for names in flags.allow for name in names.split(",")],
            say=lambda line: quiet.print(line, highlight=False),
            watch=progress.follow,
        )
    _show(console, result, config.data)
    if flags.json:
        flags.json.write_text(json.dumps(asdict(result), indent=2))


def _stored(flags: Namespace) -> list[Path]:
    """Returns the settings file of the run to resume, which other files and flags override."""
    if flags.resume in (None, RESUME_LATEST):
        return []
    return [
        file for file in (Path(flags.resume) / CONFIG_FILE, Path(flags.resume).parent / CONFIG_FILE) if file.exists()
    ][:1]


def _show(console: Console, result: "TrainResult", data: DataConfig) -> None:
    from segray.cli.tables import print_paths, print_scores  # noqa: PLC0415 as above

    console.print()
    print_scores(console, f"validation of the best checkpoint, step {result.step}", result.scores)
    model = f"{result.model} version {result.version}" if result.version else "not registered, as said above"
    reference = f"models:/{result.model}/{result.version}" if result.version else result.checkpoint
    arguments = ["--model", reference, "--data", data.root, "--split", _evaluation_split(data)]
    console.print()
    print_paths(
        console,
        {
            "run": result.folder,
            "checkpoint": result.checkpoint,
            "mlflow": f"{result.tracking_uri} run {result.run_id or 'not uploaded'}",
            "model": model,
            "next": shlex.join([*NEXT_COMMAND, *arguments]),
        },
    )
    console.print(f"\nval mIoU {result.scores.miou:.4f}", highlight=False)


def _evaluation_split(data: DataConfig) -> str:
    """Returns the split of the suggested next command: `test` if the dataset has it, else the validation split."""
    from segray.data.manifest import load_manifest_unverified  # noqa: PLC0415 pyarrow as above

    try:
        return "test" if "test" in load_manifest_unverified(data.root).splits else data.val_split
    except DataError:
        return data.val_split
