"""The command line: `segray COMMAND`, and the same commands as scripts in pipelines/."""

import sys
from importlib import import_module

COMMANDS = {
    "prepare": "convert images and masks to a dataset of Parquet shards, or check a dataset",
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


def main() -> None:
    """Runs `segray COMMAND ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"segray {name}", *sys.argv[2:]]
        # Only the requested command is imported: importing the others takes seconds.
        import_module(f"segray.cli.{name}").main()
        return
    lines = [f"  {command:<10} {description}" for command, description in COMMANDS.items()]
    print("usage: segray COMMAND [--help] ...", *lines, sep="\n")
    sys.exit(0 if name in ("-h", "--help") else 2)
