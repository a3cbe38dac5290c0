"""Command `train`: trains, validates and registers a model."""

import shlex
from argparse import Namespace
from dataclasses import asdict

from rich.console import Console

from segray.cli.parser import make_console, write_json
from segray.cli.progress import TrainingProgress
from segray.cli.tables import print_paths, print_scores
from segray.config import Config, DataConfig
from segray.core.errors import DataError
from segray.data.manifest import load_manifest_unverified
from segray.training.fit import TrainResult, fit

NEXT_COMMAND = ("python", "pipelines/evaluate.py")


def run(flags: Namespace, config: Config) -> None:
    """Trains, and prints and writes the result."""
    console, log = make_console(), make_console(flags.quiet)
    with TrainingProgress(log, config.train.steps) as progress:
        result = fit(
            config,
            resume=flags.resume,
            allowed=[name for names in flags.allow for name in names.split(",")],
            say=lambda line: log.print(line, highlight=False),
            watch=progress.follow,
        )
    _print_result(console, result, config.data)
    write_json(flags.json, asdict(result))


def _print_result(console: Console, result: TrainResult, data: DataConfig) -> None:
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
    try:
        return "test" if "test" in load_manifest_unverified(data.root).splits else data.val_split
    except DataError:
        return data.val_split
