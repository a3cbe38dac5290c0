"""`benchmark WHAT`: compares segray with a peer in alternating turns of one run."""

import difflib
import sys
from importlib import import_module

from segray.cli.parser import run_command
from segray.core.errors import ConfigError

BENCHMARKS = {
    "model": "SegFormer network: training step, inference, memory",
    "inference": "inference from images to masks: latency, throughput, memory",
    "evaluate": "evaluation of a split, compared with a loop that uses torchmetrics",
    "prepare": "conversion of images and masks to parquet: throughput, memory",
    "ingest": "loading of batches from parquet: throughput, first batch, memory",
    "batch": "largest training batch that fits on a device",
    "train": "complete training, compared with a loop on tensors in memory",
    "serve": "serving, compared with a prediction loop and MLflow's server, or under attack (--hostile)",
    "sweep": "sweep, compared with the same runs one after another",
}


def main() -> None:
    """Runs the command."""
    run_command(_benchmark)


def _benchmark() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in {"-h", "--help"}:
        lines = [f"  {benchmark:<10} {explanation}" for benchmark, explanation in BENCHMARKS.items()]
        print("usage: benchmark WHAT [--help] ...", *lines, sep="\n")
        return
    if name not in BENCHMARKS:
        matches = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else "."
        raise ConfigError(f"unknown benchmark '{name}'; expected one of {', '.join(BENCHMARKS)}{hint}")
    # Imports only the requested benchmark: the model benchmark needs neither Ray nor an image library.
    import_module(f"benchmarks.commands.{name}").run(sys.argv[2:])
