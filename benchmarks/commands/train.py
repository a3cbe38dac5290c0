"""`benchmark train`: compares complete training with a bare loop and transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import hf_trainer, training
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray import config
from segray.cli.command import CommandParser
from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.config import Config, paths
from segray.data.class_balance import draws_per_epoch
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.training.run_spec import RunSpec


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    parser = CommandParser(
        "benchmark train",
        "Measures what the platform costs a training: stream, reports and all, beside a loop that has none.",
        settings=("data", "model", "loss", "optim", "train"),
    )
    parser.add_common("data")
    parser.add_argument("--steps", type=int, default=50, help="steps of a turn (default: 50)")
    peers = ", ".join(training.PEERS)
    parser.add_argument("--against", nargs="+", choices=training.PEERS, default=training.PEERS, help=f"of {peers}")
    add_common(parser, turns=5)
    flags, given = parser.parse(argv)
    if training.HF_TRAINER in flags.against:
        hf_trainer.require_installed()
    require_positive(flags, "steps", "turns")
    wanted = _endless(given, paths.absolute_path("data.root", given.data.root))
    manifest = read_manifest(wanted.data.root)
    source = SplitReader(wanted.data.root, manifest.split(wanted.data.train_split))
    connect()
    placement = resources.allocate_workers(potential_nodes(), wanted.train.workers, wanted.train.device)
    make_logger(flags)(f"{placement}; {flags.turns} turns of {flags.steps} steps each ...")
    job = RunSpec(wanted, manifest, placement, Path(), draws_per_epoch(source, wanted.data))
    report = training.run_benchmark(training.TrainingCase(job, flags.steps, flags.turns, flags.against))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    print("\na step's time: " + ", ".join(f"{name} {share:.1%}" for name, share in report.phases.items()))
    write_json(flags, report)


def _endless(given: Config, root: str) -> Config:
    """Returns the settings of a run that never reaches a validation."""
    never: dict[str, Any] = {"train.steps": training.FOR_EVER, "train.val_every": training.FOR_EVER}
    return config.build(config.flatten(given) | never | {"data.root": root, "train.checkpoint_every": None})
