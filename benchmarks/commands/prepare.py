"""`benchmark prepare`: compares a conversion with a bare loop that reads, hashes and counts."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import conversion
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray.cli.parser import CommandParser
from segray.cluster.connect import available_cpus, connect
from segray.config import paths
from segray.core.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark prepare",
        "Measures the conversion of images and masks to a dataset, in alternating turns on the same files.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset that provides the images")
    parser.add_argument("--images", type=int, default=20_000, help="number of images to convert (default: 20000)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of the images (default: 256)")
    add_common(parser, turns=3)
    flags, _ = parser.parse(argv)
    require_positive(flags, "images", "size", "turns")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError(
            "RAY_ADDRESS is set; the benchmark starts its own cluster on this machine; unset RAY_ADDRESS."
        )
    log = make_logger(flags)
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as folder:
        log(f"writing {flags.images} images and masks ...")
        root = paths.absolute_path("--data", flags.data)
        listing = conversion.write_pairs(root, flags.size, flags.images, Path(folder) / "source")
        connect()
        report = conversion.run_benchmark(listing, Path(folder), available_cpus(), flags.turns, log)
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)
