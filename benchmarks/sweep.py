"""Benchmark of a sweep. The baseline is the same runs one after another. Measures the total time and the gaps."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml

from benchmarks import machine
from benchmarks.interleave import BenchmarkReport, time_row
from segray.core.errors import TrainingError
from segray.tracking.journal import Journal

SEPARATE = "train, one after another"
LOWEST_LR, LR_FACTOR = 1e-4, 2.0


def run_benchmark(
    settings: Mapping[str, Any], trials: int, folder: Path, log: Callable[[str], None]
) -> BenchmarkReport:
    """Compares a sweep of `trials` trials with the same runs one after another, including the start-up of each command.

    Args:
        settings: settings of every run; the learning rates differ.
        trials: number of trials.
        folder: working folder.
        log: callback that receives progress messages.
    """
    rates = [LOWEST_LR * LR_FACTOR**number for number in range(trials)]
    tune = {"space": {"optim.lr": {"choice": rates}}, "search": "grid", "scheduler": "none", "trials": trials}
    log(f"sweep of {trials} trials ...")
    sweep_s = _run_command("tune", {**settings, "name": "sweep", "tune": tune}, folder)
    separate_s = 0.0
    for number, rate in enumerate(rates):
        log(f"run {number + 1} of {trials} ...")
        run = {**settings, "name": f"run-{number}", "optim": {**settings.get("optim", {}), "lr": rate}}
        separate_s += _run_command("train", run, folder)
    results = folder / "results"
    ours, theirs = _gaps(sorted(results.glob("sweep/trial-*"))), _gaps(sorted(results.glob("run-*")))
    rows = [
        time_row("all of them", SEPARATE, [sweep_s], [separate_s], "s"),
        time_row("a trial's end to the next one's first step", SEPARATE, ours, theirs, "s"),
    ]
    case: dict[str, str | int] = {
        "trials": trials,
        "steps": settings["train"]["steps"],
        "workers": settings["train"]["workers"],
    }
    return BenchmarkReport(machine.describe_machine(torch.device("cpu")), case, rows)


def _run_command(command: str, settings: Mapping[str, Any], folder: Path) -> float:
    """Runs a command in a subprocess and returns its duration in seconds.

    Raises:
        TrainingError: the command failed.
    """
    file = folder / f"{settings['name']}.yaml"
    file.write_text(yaml.safe_dump({**settings, "results": str(folder / "results")}))
    arguments = [sys.executable, "-m", "segray", command, "--config", str(file), "--quiet"]
    start = perf_counter()
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise TrainingError(f"{command} failed with exit code {result.returncode}: {result.stderr[-2000:]}")
    return perf_counter() - start


def _gaps(runs: Sequence[Path]) -> list[float]:
    """Returns the seconds between the end of each run and the first step of the next, for sequential runs."""
    spans = sorted(_span(run) for run in runs)
    return [(first - end) / 1000 for (_, end), (first, _) in pairwise(spans)]


def _span(run: Path) -> tuple[int, int]:
    """Returns the times of the first step and of the end of a run, in milliseconds."""
    records = Journal(run).records()
    first = min(record["time_ms"] for record in records if record["kind"] == "metrics")
    return first, max(record["time_ms"] for record in records if record["kind"] == "end")
