"""`benchmark WHAT`: compares segray with a peer in alternating turns of one run."""

import difflib
import sys
from importlib import import_module

from segray.cli.command import run_command
from segray.core.errors import ConfigError

WHAT = {
    "model": "train step, inference and memory of SegFormer",
    "inference": "from images to masks: latency, images a second, memory",
    "evaluate": "a split's scores, beside a plain loop with torchmetrics",
    "prepare": "images and masks to parquet: images a second, memory",
    "ingest": "batches from parquet: images a second, first batch, memory",
    "batch": "the largest batch that a device trains",
    "train": "training fed by the stream, beside tensors in memory",
    "serve": "requests answered, beside a bare loop and MLflow's own server",
    "sweep": "a sweep, beside the same runs one after another",
}


def main() -> None:
    """Runs the command."""
    run_command(_benchmark)


def _benchmark() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if what in {"-h", "--help"}:
        lines = [f"  {name:<10} {explanation}" for name, explanation in WHAT.items()]
        print("usage: benchmark WHAT [--help] ...", *lines, sep="\n")
        return
    if what not in WHAT:
        close = difflib.get_close_matches(what, WHAT, n=1)
        advice = f"; did you mean {close[0]}?" if close else "."
        raise ConfigError(f"'{what}' is nothing to measure; expected {', '.join(WHAT)}{advice}")
    # Imports only the requested benchmark: the model benchmark needs neither Ray nor an image library.
    import_module(f"benchmarks.commands.{what}").run(sys.argv[2:])
