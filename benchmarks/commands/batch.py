"""`benchmark batch`: finds the largest batch that fits on a device."""

from collections.abc import Sequence

import torch

from benchmarks import max_batch
from benchmarks.commands.shared import add_benchmark_flags, make_logger, print_case, require_positive, write_json
from benchmarks.max_batch import MaxBatchReport
from segray.cli.parser import CommandParser
from segray.config import Config
from segray.core.errors import ConfigError
from segray.core.numbers import GIB


def run(argv: Sequence[str]) -> None:
    """Runs the search and prints the report."""
    parser = CommandParser(
        "benchmark batch",
        "Finds the largest batch that a device trains with these settings.",
        settings=("data.crop", "model", "loss", "optim", "train"),
    )
    parser.add_argument("--classes", type=int, default=150, help="number of classes (default: 150)")
    parser.add_argument("--most", type=int, default=512, help="maximum batch size (default: 512)")
    add_benchmark_flags(parser)
    flags, config = parser.parse(argv)
    require_positive(flags, "classes", "most")
    report = max_batch.run_benchmark(config, flags.classes, _device(config), flags.most, make_logger(flags))
    make_logger(flags)("")
    print_case(report.machine, report.case)
    _print_report(report, config)
    write_json(flags, report)


def _device(config: Config) -> torch.device:
    device = config.train.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but torch finds no GPU here; use --train.device cpu.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _print_report(report: MaxBatchReport, config: Config) -> None:
    peak, budget = (f"{value / GIB:.1f} GiB" for value in (report.peaks[report.largest], report.budget))
    next_size = "larger batches were not tested" if report.too_many is None else f"{report.too_many} do not fit"
    print(f"largest batch per worker: {report.largest} images ({peak} of {budget}); {next_size}")
    train = config.train
    worker_batch = -(-train.batch // train.workers)
    accumulation_steps = -(-worker_batch // report.largest)
    print(
        f"--train.batch {train.batch} --train.workers {train.workers} requires "
        f"--train.accumulation_steps {accumulation_steps}"
    )
