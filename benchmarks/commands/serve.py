"""`benchmark serve`: compares serving with a bare loop and MLflow's server."""

import os
from collections.abc import Sequence

from benchmarks import serving
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray.cli.command import CommandParser
from segray.cli.settings import STORE
from segray.cluster.connect import available_cpus
from segray.config import paths
from segray.core.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark serve",
        "Measures requests per second on the CPUs of this machine, and optionally memory over many requests.",
        settings=(*STORE, "tracking.model", "serve"),
    )
    parser.add_alias("--name", "tracking.model", metavar="MODEL")
    parser.add_argument("--version", required=True, help="version of the model; it must have the alias of serve.alias")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], metavar="PX", help="sides of the images (default: 256 512)"
    )
    parser.add_argument("--seconds", type=int, default=10, help="duration of a turn (default: 10)")
    parser.add_argument(
        "--requests", type=int, default=0, help="requests of a long run with memory measurement (default: 0)"
    )
    add_common(parser, turns=5)
    flags, config = parser.parse(argv)
    require_positive(flags, "seconds", "turns")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError(
            "RAY_ADDRESS is set; the benchmark starts its own cluster on this machine; unset RAY_ADDRESS."
        )
    cores = available_cpus()
    serve = config.serve.model_copy(update={"replicas": cores, "max_replicas": cores})
    tracking = config.tracking.model_copy(update={"uri": paths.tracking_uri(config)})
    config = config.model_copy(update={"serve": serve, "tracking": tracking})
    settings = serving.ServingBenchmark(flags.sizes, flags.seconds, flags.turns, flags.requests)
    report = serving.run_benchmark(config, flags.version, settings, make_logger(flags))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)
