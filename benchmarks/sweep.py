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
LOWEST, TIMES = 1e-4, 2.0


def run_benchmark(
    settings: Mapping[str, Any], trials: int, folder: Path, say: Callable[[str], None]
) -> BenchmarkReport:
    """Compares a sweep of `trials` trials with the same runs one after another, including the start-up of each command.

    Args:
        settings: settings of every run; the learning rates differ.
        trials: number of trials.
        folder: working folder.
        say: callback that receives progress messages.
    """
    rates = [LOWEST * TIMES**number for number in range(trials)]
    tune = {"space": {"optim.lr": {"choice": rates}}, "search": "grid", "scheduler": "none", "trials": trials}
    say(f"a sweep of {trials} trials ...")
    swept = _seconds("tune", {**settings, "name": "sweep", "tune": tune}, folder)
    apart = 0.0
    for number, rate in enumerate(rates):
        say(f"run {number + 1} of {trials} ...")
        run = {**settings, "name": f"run-{number}", "optim": {**settings.get("optim", {}), "lr": rate}}
        apart += _seconds("train", run, folder)
    results = folder / "results"
    ours, theirs = _gaps(sorted(results.glob("sweep/trial-*"))), _gaps(sorted(results.glob("run-*")))
    rows = [
        time_row("all of them", SEPARATE, [swept], [apart], "s"),
        time_row("a trial's end to the next one's first step", SEPARATE, ours, theirs, "s"),
    ]
    case: dict[str, str | int] = {
        "trials": trials,
        "steps": settings["train"]["steps"],
        "workers": settings["train"]["workers"],
    }
    return BenchmarkReport(machine.describe_machine(torch.device("cpu")), case, rows)


def _seconds(command: str, settings: Mapping[str, Any], folder: Path) -> float:
    """Runs a command in a subprocess and returns its duration in seconds.

    Raises:
        TrainingError: the command failed.
    """
    file = folder / f"{settings['name']}.yaml"
    file.write_text(yaml.safe_dump({**settings, "results": str(folder / "results")}))
    words = [sys.executable, "-m", "segray", command, "--config", str(file), "--quiet"]
    began = perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrainingError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return perf_counter() - began


def _gaps(runs: Sequence[Path]) -> list[float]:
    """Returns the seconds between the end of each run and the first step of the next, for sequential runs."""
    spans = sorted(_span(run) for run in runs)
    return [(first - end) / 1000 for (_, end), (first, _) in pairwise(spans)]


def _span(run: Path) -> tuple[int, int]:
    """Returns the times of the first step and of the end of a run, in milliseconds."""
    records = Journal(run).records()
    first = min(record["time_ms"] for record in records if record["kind"] == "metrics")
    return first, max(record["time_ms"] for record in records if record["kind"] == "end")
