"""The command line: `segray COMMAND`, and the same commands as scripts in pipelines/."""

import sys
from importlib import import_module
from typing import NoReturn

from segray.cli.flags import PARSERS
from segray.cli.parser import run_command
from segray.core.errors import ConfigError

COMMANDS = {
    "prepare": "convert images and masks to a dataset of Parquet shards, or validate a dataset",
    "train": "train a model and register the best checkpoint",
    "tune": "search hyperparameters and register the best model",
    "evaluate": "evaluate a model on a split of a dataset, or compare two models",
    "predict": "segment images and write the masks",
    "promote": "promote a registered model to champion if it passes the gates, or roll back",
    "serve": "serve a registered model over HTTP",
    "analyse": "show the cost of a model, training batches, or the curves of runs",
    "doctor": "check whether a run or sweep can work on a cluster",
    "tracking": "upload the records that a run could not send to MLflow",
}
MOVED = {"benchmark": "python pipelines/benchmark.py"}
"""New command line by earlier name of a command."""


def main() -> None:
    """Runs `segray COMMAND ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"segray {name}", *sys.argv[2:]]
        run(name)
    if name in MOVED:
        run_command(lambda: _raise_moved(name))
    lines = [f"  {command:<10} {description}" for command, description in COMMANDS.items()]
    print("usage: segray COMMAND [--help] ...", *lines, sep="\n")
    sys.exit(0 if name in ("-h", "--help") else 2)


def run(name: str) -> NoReturn:
    """Runs a command with the arguments of the process, and exits."""
    run_command(lambda: _run(name))


def _raise_moved(name: str) -> NoReturn:
    raise ConfigError(f"`segray {name}` is now `{MOVED[name]}`.")


def _run(name: str) -> None:
    """Parses the flags before the import of the command, which takes seconds."""
    if name == "prepare" and any(argument.split("=")[0] == "--check" for argument in sys.argv):
        name = "validate"
    if name == "analyse":
        import_module("segray.cli.analyse").run(sys.argv[1:])  # its subjects have flags of their own
        return
    flags, config = PARSERS[name]().parse()
    import_module(f"segray.cli.{name}").run(flags, config)
