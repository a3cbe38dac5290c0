"""`benchmark batch`: the largest batch that a device trains."""

from collections.abc import Sequence

import torch

from segray.benchmark import largest
from segray.benchmark.largest import Report
from segray.cli.benchmark.shared import check_counts, name_benchmark, show_case, speaker, write_json
from segray.cli.command import Parser
from segray.config import Config
from segray.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Searches and shows."""
    parser = Parser("Finds the largest batch that a device trains with these settings.", with_config=True)
    parser.add_argument("--classes", type=int, default=150, help="classes (default: 150)")
    parser.add_argument("--most", type=int, default=512, help="images that are not exceeded (default: 512)")
    name_benchmark(parser, "batch")
    flags, config = parser.parse(argv)
    check_counts(flags, "classes", "most")
    report = largest.measured(config, flags.classes, _device(config), flags.most, speaker(flags))
    speaker(flags)("")
    show_case(report.machine, report.case)
    _show(report, config)
    write_json(flags, report)


def _device(config: Config) -> torch.device:
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, and torch finds no GPU here; use --train.device cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _show(report: Report, config: Config) -> None:
    peak, budget = (f"{value / 2**30:.1f} GiB" for value in (report.peaks[report.largest], report.budget))
    beyond = "no more were tried" if report.too_many is None else f"{report.too_many} do not fit"
    print(f"{report.largest} images fit on a worker ({peak} of {budget}); {beyond}")
    train = config.train
    share = -(-train.batch // train.workers)
    parts = -(-share // report.largest)
    print(f"--train.batch {train.batch} --train.workers {train.workers} need --train.accumulate {parts}")
