"""`benchmark serve`: serving beside a bare loop and MLflow's own server."""

import os
from collections.abc import Sequence

from segray import cluster, places
from segray.benchmark import serving
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser
from segray.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    parser = Parser("Measures requests a second on this machine's CPUs, and memory over many.", with_config=True)
    parser.add_argument("--name", default="segray", metavar="MODEL", help="registered model (default: segray)")
    parser.add_argument("--version", required=True, help="of the model; it needs the alias of serve.alias")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], metavar="PX", help="(default: 256 512)")
    parser.add_argument("--seconds", type=int, default=10, help="of a turn (default: 10)")
    parser.add_argument("--requests", type=int, default=0, help="of a long run whose memory is watched (default: none)")
    add_common(parser, "serve", turns=5)
    flags, config = parser.parse(argv)
    check_counts(flags, "seconds", "turns")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError("RAY_ADDRESS is set; what is measured needs a cluster of its own on this machine; unset it.")
    cores = cluster.available_cpus()
    serve = config.serve.model_copy(update={"replicas": cores, "most_replicas": cores})
    tracking = config.tracking.model_copy(update={"model": flags.name, "uri": places.tracking_uri(config)})
    config = config.model_copy(update={"serve": serve, "tracking": tracking})
    asked = serving.Asked(flags.sizes, flags.seconds, flags.turns, flags.requests)
    report = serving.measured(config, flags.version, asked, speaker(flags))
    show_case(report.machine, report.case)
    show_rows(report.rows)
    write_json(flags, report)
