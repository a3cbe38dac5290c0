"""`benchmark train`: training fed by Ray Data through Ray Train, beside tensors in memory."""

from collections.abc import Sequence

from segray import capacity, cluster, places
from segray.benchmark import training
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import read_manifest


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    parser = Parser(
        "Measures what the data plane costs a training: turns in one worker, whatever train.workers says.",
        with_config=True,
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn (default: 10)")
    add_common(parser, "train", turns=5)
    flags, config = parser.parse(argv)
    check_counts(flags, "steps", "turns")
    root = places.absolute("data.root", flags.data or config.data.root)
    manifest = read_manifest(root)
    source = Source(root, manifest.split(config.data.train_split))
    cluster.connect()
    placement = capacity.place(cluster.nodes(), 1, config.train.device)
    speaker(flags)(f"{placement}; {flags.turns} turns of {flags.steps} steps each ...")
    case = training.Case(
        config, source, manifest.classes, draw_times(source, config.data), flags.steps, flags.turns, placement
    )
    report = training.measured(case)
    show_case(report.machine, report.case)
    show_rows(report.rows)
    write_json(flags, report)
