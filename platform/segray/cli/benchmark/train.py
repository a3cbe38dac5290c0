"""`benchmark train`: the whole platform's training beside a bare loop and transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segray import capacity, cluster, config, places
from segray.benchmark import peer_trainer, training
from segray.cli.benchmark.shared import add_common, check_counts, show_case, show_rows, speaker, write_json
from segray.cli.command import Parser
from segray.config import Config
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import read_manifest
from segray.train.job import Job


def run(argv: Sequence[str]) -> None:
    """Measures and shows."""
    parser = Parser(
        "Measures what the platform costs a training: stream, reports and all, beside a loop that has none.",
        with_config=True,
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--steps", type=int, default=50, help="steps of a turn (default: 50)")
    peers = ", ".join(training.PEERS)
    parser.add_argument("--against", nargs="+", choices=training.PEERS, default=training.PEERS, help=f"of {peers}")
    add_common(parser, "train", turns=5)
    flags, given = parser.parse(argv)
    if training.HF_TRAINER in flags.against:
        peer_trainer.check()
    check_counts(flags, "steps", "turns")
    wanted = _endless(given, places.absolute("data.root", flags.data or given.data.root))
    manifest = read_manifest(wanted.data.root)
    source = Source(wanted.data.root, manifest.split(wanted.data.train_split))
    cluster.connect()
    placement = capacity.place(cluster.nodes(), wanted.train.workers, wanted.train.device)
    speaker(flags)(f"{placement}; {flags.turns} turns of {flags.steps} steps each ...")
    job = Job(wanted, manifest, placement, Path(), draw_times(source, wanted.data))
    report = training.measured(training.Case(job, flags.steps, flags.turns, flags.against))
    show_case(report.machine, report.case)
    show_rows(report.rows)
    print("\na step's time: " + ", ".join(f"{name} {share:.1%}" for name, share in report.phases.items()))
    write_json(flags, report)


def _endless(given: Config, root: str) -> Config:
    """Returns the settings of a run that comes to no validation."""
    never: dict[str, Any] = {"train.steps": training.FOR_EVER, "train.val_every": training.FOR_EVER}
    return config.build(config.flat(given) | never | {"data.root": root, "train.checkpoint_every": None})
