"""Command `train`: trains, validates and registers a model."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console

from segray.cli.command import CommandParser, make_console, run_command, write_json
from segray.config import DataConfig
from segray.core.errors import DataError

if TYPE_CHECKING:
    from segray.training.fit import TrainResult

NEXT_COMMAND = ("python", "pipelines/evaluate.py")


def main() -> None:
    """Runs the command."""
    run_command(_train)


def _train() -> None:
    parser = CommandParser("train", "Trains SegFormer on a prepared dataset and registers the best checkpoint.")
    parser.add_common("data", "json", "quiet", "resume")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="with --resume: a setting that may differ from the resumed run, or dataset, or classes",
    )
    flags, config = parser.parse()
    console, log = make_console(), make_console(flags.quiet)
    # torch, Ray and MLflow take seconds to import; `--help` and flag errors do not need them.
    from segray.cli.progress import TrainingProgress  # noqa: PLC0415
    from segray.training.fit import fit  # noqa: PLC0415

    with TrainingProgress(log, config.train.steps) as progress:
        result = fit(
            config,
            resume=flags.resume,
            allowed=[name for names in flags.allow for name in names.split(",")],
            say=lambda line: log.print(line, highlight=False),
            watch=progress.follow,
        )
    _show(console, result, config.data)
    write_json(flags.json, asdict(result))


def _show(console: Console, result: "TrainResult", data: DataConfig) -> None:
    from segray.cli.tables import print_paths, print_scores  # noqa: PLC0415 as above

    console.print()
    print_scores(console, f"validation of the best checkpoint, step {result.step}", result.scores)
    model = f"{result.model} version {result.version}" if result.version else "not registered; see above"
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
