"""`benchmark prepare`: a conversion beside a bare loop that reads, hashes and counts."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from segray import cluster, places
from segray.benchmark import preparing
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser
from segray.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    parser = Parser("Measures how fast images and masks become a dataset: turns in one run, on the same files.")
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset the images are taken from")
    parser.add_argument("--images", type=int, default=20_000, help="files to convert (default: 20000)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="their side (default: 256)")
    add_common(parser, "prepare", turns=3)
    flags, _ = parser.parse(argv)
    check_counts(flags, "images", "size", "turns")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError("RAY_ADDRESS is set; what is measured needs a cluster of its own on this machine; unset it.")
    say = speaker(flags)
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as folder:
        say(f"writing {flags.images} images and masks ...")
        root = places.absolute("--data", flags.data)
        found = preparing.write_pairs(root, flags.size, flags.images, Path(folder) / "source")
        cluster.connect()
        report = preparing.measured(found, Path(folder), cluster.available_cpus(), flags.turns, say)
    show_case(report.machine, report.case)
    show_rows(report.rows)
    write_json(flags, report)
