"""The command line: `segray COMMAND`, and the same commands as scripts in pipelines/."""

import sys
from importlib import import_module

COMMANDS = {
    "prepare": "write a dataset as parquet shards",
    "train": "train a model and register it",
    "tune": "search settings and register the best model",
    "evaluate": "count a model's hits and misses on a split",
    "predict": "segment images",
    "promote": "have a registered model served, if it is good enough",
    "serve": "answer requests with a registered model",
    "analyse": "show what a model costs, what it is fed, how runs went",
    "doctor": "look into a cluster, and whether a run or sweep would work there",
    "tracking": "upload what a run could not send to MLflow",
}


def main() -> None:
    """Runs `segray COMMAND ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"segray {name}", *sys.argv[2:]]
        # Only the command asked for is imported: the others would cost seconds.
        import_module(f"segray.cli.{name}").main()
        return
    lines = [f"  {command:<10} {what}" for command, what in COMMANDS.items()]
    print("usage: segray COMMAND [--help] ...", *lines, sep="\n")
    sys.exit(0 if name in ("-h", "--help") else 2)
