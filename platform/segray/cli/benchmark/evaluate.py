"""`benchmark evaluate`: a split's scores, beside a plain loop."""

from collections.abc import Sequence

from segray import places
from segray.benchmark import evaluating
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    parser = Parser(
        "Measures the evaluation of a split beside transformers' model in a plain loop with torchmetrics.",
        with_config=True,
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--split", default="val", help="to evaluate on (default: val)")
    add_common(parser, "evaluate", turns=3)
    flags, config = parser.parse(argv)
    check_counts(flags, "turns")
    root = places.absolute("data.root", flags.data or config.data.root)
    evaluating.check_local(root)
    report = evaluating.measured(root, flags.split, config, flags.turns, speaker(flags))
    show_case(report.machine, report.case)
    show_rows(report.rows)
    write_json(flags, report)
