"""`benchmark sweep`: compares a sweep with the same runs one after another."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import sweep
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray.cli.parser import CommandParser
from segray.config import paths
from segray.core.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark sweep", "Measures the overhead of a sweep over the same separate runs, on the CPUs of this machine."
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset to train on")
    parser.add_argument("--trials", type=int, default=8, help="number of trials (default: 8)")
    parser.add_argument("--steps", type=int, default=60, help="steps per trial (default: 60)")
    parser.add_argument("--crop", type=int, default=96, metavar="PX", help="side of the crops (default: 96)")
    add_common(parser, turns=1)
    flags, _ = parser.parse(argv)
    require_positive(flags, "trials", "steps", "crop", "turns")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError(
            "RAY_ADDRESS is set; the benchmark starts its own cluster on this machine; unset RAY_ADDRESS."
        )
    settings = {
        "data": {"root": paths.absolute_path("--data", flags.data), "crop": flags.crop},
        "optim": {"warmup_steps": 1},
        "train": {"steps": flags.steps, "batch": 8, "workers": 2, "log_every": 1, "val_every": flags.steps},
    }
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as folder:
        report = sweep.run_benchmark(settings, flags.trials, Path(folder), make_logger(flags))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)
