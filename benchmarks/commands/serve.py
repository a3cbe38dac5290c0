"""`benchmark serve`: compares serving with a bare loop and MLflow's server."""

import os
from collections.abc import Sequence

from benchmarks import hostile_serving, serving
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from benchmarks.hostile_serving import HostileBenchmark, HostileReport
from segray.cli.parser import CommandParser
from segray.cli.settings import STORE
from segray.cluster.connect import available_cpus
from segray.config import paths
from segray.core.errors import ConfigError, ServingError


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark serve",
        "Measures requests per second on the CPUs of this machine, and optionally memory over many requests.",
        settings=(*STORE, "tracking.model", "serve"),
    )
    parser.add_alias("--name", "tracking.model", metavar="MODEL")
    parser.add_argument("--version", help="version of the model; it must have the alias of serve.alias")
    parser.add_argument(
        "--hostile", action="store_true", help="measure honest clients beside 16 hostile ones, with a random model"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --hostile (default: 0)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], metavar="PX", help="sides of the images (default: 256 512)"
    )
    parser.add_argument(
        "--seconds", type=int, help="duration of a turn (default: 10); with --hostile, of the attack (default: 300)"
    )
    parser.add_argument(
        "--requests", type=int, default=0, help="requests of a long run with memory measurement (default: 0)"
    )
    add_common(parser, turns=5)
    flags, config = parser.parse(argv)
    require_positive(flags, "seconds", "turns")
    if not flags.hostile and flags.version is None:
        raise ConfigError("--version is missing; expected the version of the model, or --hostile.")
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError(
            "RAY_ADDRESS is set; the benchmark starts its own cluster on this machine; unset RAY_ADDRESS."
        )
    cores = available_cpus()
    serve = config.serve.model_copy(update={"replicas": cores, "max_replicas": cores})
    tracking = config.tracking.model_copy(update={"uri": paths.tracking_uri(config)})
    config = config.model_copy(update={"serve": serve, "tracking": tracking})
    if flags.hostile:
        hostile = HostileBenchmark(flags.seconds or 300, flags.turns, flags.seed)
        _print_hostile(hostile_report := hostile_serving.run_hostile(config, hostile, make_logger(flags)))
        write_json(flags, hostile_report)
        _require_bounds(hostile_report)
        return
    settings = serving.ServingBenchmark(flags.sizes, flags.seconds or 10, flags.turns, flags.requests)
    report = serving.run_benchmark(config, flags.version, settings, make_logger(flags))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)


def _print_hostile(report: HostileReport) -> None:
    print_case(report.machine, report.case)
    print(
        "Honest clients and /healthz without (calm) and with hostile clients; the bound applies to the hostile value."
    )
    print(f"{'measure':<26}{'calm':>12}{'hostile':>12}{'bound':>12}")
    for bound in report.bounds:
        calm = "" if bound.calm is None else f"{bound.calm:.0f} {bound.unit}"
        values = f"{bound.hostile:.0f} {bound.unit}", f"{bound.limit:.0f} {bound.unit}"
        print(f"{bound.measure:<26}{calm:>12}{values[0]:>12}{values[1]:>12}{'' if bound.holds else '  EXCEEDED'}")
    print("\nResponses to the hostile clients, by kind of attack and status:")
    for name, counts in report.hostile.items():
        print(f"{name:<26}{', '.join(f'{status}: {count}' for status, count in counts.items())}")


def _require_bounds(report: HostileReport) -> None:
    """Raises ServingError if a bound is exceeded, which sets the exit status."""
    if exceeded := [bound.measure for bound in report.bounds if not bound.holds]:
        raise ServingError(f"the bounds of these measurements are exceeded: {', '.join(exceeded)}.")
