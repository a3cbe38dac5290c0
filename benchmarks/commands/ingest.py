"""`benchmark ingest`: compares segray's data stream with a DataLoader and a bare loop."""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from benchmarks import data_loading
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from benchmarks.datasets import write_resized_dataset
from benchmarks.loaders import LoaderTask
from segray.cli.parser import CommandParser
from segray.cluster.connect import available_cpus, connect
from segray.config import build, paths
from segray.core.errors import ConfigError
from segray.data.manifest import read_manifest

TENFOLD = 10


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    flags = _parser().parse(argv)[0]
    require_positive(flags, "rows", "size", "crop", "batch", "images", "turns", "cores")
    build({"data.crop": flags.crop})
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError(
            "RAY_ADDRESS is set; the benchmark starts its own cluster on this machine; unset RAY_ADDRESS."
        )
    log = make_logger(flags)
    with tempfile.TemporaryDirectory(prefix="segray-benchmark-") as folder:
        task, tenfold = _build_tasks(flags, Path(folder), log)
        report = data_loading.run_benchmark(task, tenfold, flags.turns, log)
    log("")
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)


def _parser() -> CommandParser:
    parser = CommandParser(
        "benchmark ingest",
        "Measures the loading of training batches from parquet, in alternating turns on the same rows.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset that provides the rows")
    parser.add_argument("--split", default="train", help="split of the dataset (default: train)")
    parser.add_argument(
        "--size", type=int, metavar="PX", help="resize to square JPEGs of this side (default: unchanged)"
    )
    parser.add_argument(
        "--rows", type=int, default=2000, help="number of rows, repeated if the split has fewer (default: 2000)"
    )
    parser.add_argument("--crop", type=int, default=512, metavar="PX", help="side of the crops (default: 512)")
    parser.add_argument("--batch", type=int, default=16, help="crops per batch (default: 16)")
    parser.add_argument("--images", type=int, default=2000, help="images per turn (default: 2000)")
    parser.add_argument("--cores", type=int, help="processes or threads per candidate (default: all cores)")
    parser.add_argument("--tenfold", action="store_true", help="also measure the memory with ten times the rows")
    add_common(parser, turns=5)
    return parser


def _build_tasks(
    flags: argparse.Namespace, folder: Path, log: Callable[[str], None]
) -> tuple[LoaderTask, LoaderTask | None]:
    """Returns the measured tasks, on datasets written for them. The cluster that writes the datasets is shut down."""
    root = paths.absolute_path("--data", flags.data)
    read_manifest(root).split(flags.split)
    cores = flags.cores or available_cpus()
    tasks = []
    connect()
    for rows in [flags.rows, flags.rows * TENFOLD] if flags.tenfold else [flags.rows]:
        log(f"writing {rows} rows ...")
        source = write_resized_dataset(root, flags.split, flags.size, rows, folder / str(rows))
        tasks.append(LoaderTask(source, flags.crop, flags.batch, max(2, flags.images // flags.batch), cores))
    ray.shutdown()
    return tasks[0], tasks[1] if flags.tenfold else None
