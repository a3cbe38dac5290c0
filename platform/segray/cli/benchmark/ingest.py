"""`benchmark ingest`: our stream beside a DataLoader and a bare loop."""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from segray import cluster, places
from segray.benchmark import ingest
from segray.benchmark.loaders import Load
from segray.benchmark.samples import resized
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser
from segray.config import build
from segray.data.schema import read_manifest
from segray.errors import ConfigError

TENFOLD = 10


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    flags = _parser().parse(argv)[0]
    check_counts(flags, "rows", "size", "crop", "batch", "images", "turns", "cores")
    build({"data.crop": flags.crop})
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError("RAY_ADDRESS is set; what is measured needs a cluster of its own on this machine; unset it.")
    say = speaker(flags)
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as folder:
        load, tenfold = _loads(flags, Path(folder), say)
        report = ingest.measured(load, tenfold, flags.turns, say)
    say("")
    show_case(report.machine, report.case)
    show_rows(report.rows)
    write_json(flags, report)


def _parser() -> Parser:
    parser = Parser("Measures how fast training batches come from parquet: turns in one run, on the same rows.")
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset the rows are taken from")
    parser.add_argument("--split", default="train", help="its split (default: train)")
    parser.add_argument("--size", type=int, metavar="PX", help="make them square JPEGs of this side (default: as is)")
    parser.add_argument("--rows", type=int, default=2000, help="rows to read, repeated if need be (default: 2000)")
    parser.add_argument("--crop", type=int, default=512, metavar="PX", help="side of the crops (default: 512)")
    parser.add_argument("--batch", type=int, default=16, help="crops of a batch (default: 16)")
    parser.add_argument("--images", type=int, default=2000, help="images of a turn (default: 2000)")
    parser.add_argument("--cores", type=int, help="processes or threads each may use (default: all)")
    parser.add_argument("--tenfold", action="store_true", help="memory with ten times the rows, too")
    add_common(parser, "ingest", turns=5)
    return parser


def _loads(flags: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> tuple[Load, Load | None]:
    """Returns what is measured, on data sets written for it; the cluster that writes them is gone afterwards."""
    root = places.absolute("--data", flags.data)
    read_manifest(root).split(flags.split)
    cores = flags.cores or cluster.available_cpus()
    loads = []
    cluster.connect()
    for rows in [flags.rows, flags.rows * TENFOLD] if flags.tenfold else [flags.rows]:
        say(f"writing {rows} rows ...")
        source = resized(root, flags.split, flags.size, rows, folder / str(rows))
        loads.append(Load(source, flags.crop, flags.batch, max(2, flags.images // flags.batch), cores))
    ray.shutdown()
    return loads[0], loads[1] if flags.tenfold else None
