"""`benchmark train`: compares complete training with a bare loop and transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import hf_trainer, training
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from segray import config
from segray.cli.parser import CommandParser
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
        "Measures the overhead of complete training, with data loading and reports, over a loop without them.",
        settings=("data", "model", "loss", "optim", "train"),
    )
    parser.add_common("data")
    parser.add_argument("--steps", type=int, default=50, help="steps per turn (default: 50)")
    peers = ", ".join(training.PEERS)
    parser.add_argument(
        "--against",
        nargs="+",
        choices=training.PEERS,
        default=training.PEERS,
        help=f"peers to compare with (default: {peers})",
    )
    add_common(parser, turns=5)
    flags, run_config = parser.parse(argv)
    if training.HF_TRAINER in flags.against:
        hf_trainer.require_installed()
    require_positive(flags, "steps", "turns")
    settings = _without_validation(run_config, paths.absolute_path("data.root", run_config.data.root))
    manifest = read_manifest(settings.data.root)
    source = SplitReader(settings.data.root, manifest.split(settings.data.train_split))
    connect()
    placement = resources.allocate_workers(potential_nodes(), settings.train.workers, settings.train.device)
    make_logger(flags)(f"{placement}; {flags.turns} turns of {flags.steps} steps ...")
    job = RunSpec(settings, manifest, placement, Path(), draws_per_epoch(source, settings.data))
    report = training.run_benchmark(training.TrainingCase(job, flags.steps, flags.turns, flags.against))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    print("\nstep time: " + ", ".join(f"{name} {share:.1%}" for name, share in report.phases.items()))
    write_json(flags, report)


def _without_validation(run_config: Config, root: str) -> Config:
    """Returns the settings of a run that never reaches a validation."""
    unreachable: dict[str, Any] = {
        "train.steps": training.UNREACHABLE_STEP,
        "train.val_every": training.UNREACHABLE_STEP,
    }
    return config.build(config.flatten(run_config) | unreachable | {"data.root": root, "train.checkpoint_every": None})
