"""`benchmark evaluate`: compares the evaluation of a split with a plain loop."""

from collections.abc import Sequence

from benchmarks import evaluation
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray.cli.parser import CommandParser
from segray.config import paths


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark evaluate",
        "Compares the evaluation of a split with a loop over transformers' model and torchmetrics.",
        settings=("data.root", "data.short_side", "data.crop", "model", "eval"),
    )
    parser.add_common("data")
    parser.add_argument("--split", default="val", help="split to evaluate (default: val)")
    add_common(parser, turns=3)
    flags, config = parser.parse(argv)
    require_positive(flags, "turns")
    root = paths.absolute_path("data.root", config.data.root)
    evaluation.require_local(root)
    report = evaluation.run_benchmark(root, flags.split, config, flags.turns, make_logger(flags))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)
