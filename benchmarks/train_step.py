"""Benchmark of the model: training step, inference, memory, multiply-accumulates and the machine's matrix rate."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from benchmarks import machine, memory
from benchmarks.interleave import Row, time_row
from benchmarks.peers import (
    DTYPES,
    OURS,
    Case,
    Implementation,
    ImplementationSpec,
    build_implementation,
    count_macs,
    max_relative_difference,
)
from segray.core.errors import ModelError
from segray.core.numbers import MIB
from segray.inference.timing import time_interleaved

# Number of products per matrix. A training step has three: forward, and the gradients of the input and the weights.
PRODUCTS = {"inference": 1, "train_step": 3}
UNITS = {"inference": "s", "train_step": "s", "train_memory": "MiB"}
MAX_DISAGREEMENT = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


@dataclass(frozen=True)
class StepReport:
    """The results of one run.

    Attributes:
        machine: description of the machine.
        case: measured case.
        rows: measurements of segray compared with the peer.
        macs: multiply-accumulates of the forward pass of one image, by implementation.
        matrix_rate: multiply-accumulates per second of a matrix product on this device, in this run.
        share_of_rate: fraction of that rate that segray achieves, by measurement.
        disagreement: largest difference of the logits, relative to their range.
    """

    machine: dict[str, str | int]
    case: Case
    rows: list[Row]
    macs: dict[str, int]
    matrix_rate: float
    share_of_rate: dict[str, float]
    disagreement: float


def run_benchmark(
    case: Case, peer: str, turns: int, *, compiled: bool = False, log: Callable[[str], None]
) -> StepReport:
    """Compares segray with a peer.

    Args:
        case: measured case.
        peer: name of the peer.
        turns: number of turns of each implementation.
        compiled: whether segray is compiled and compared with both the eager and the compiled peer.
        log: callback that receives progress messages.

    Raises:
        ModelError: the outputs differ, the peer's library is not installed, or the device is missing.
    """
    device, dtype = _device(case), DTYPES[case.dtype]
    specs = [
        ImplementationSpec(OURS, compiled),
        ImplementationSpec(peer),
        *([ImplementationSpec(peer, True)] if compiled else []),
    ]
    candidates = [build_implementation(spec, case) for spec in specs]
    difference = _require_agreement(candidates, case)
    rates = [machine.matrix_rate(device, dtype)]
    series = _times(candidates, turns, device, log) | _memory(specs, case, device, log)
    rates.append(machine.matrix_rate(device, dtype))
    rows = [
        time_row(measure, str(spec), values[0], theirs, UNITS[measure])
        for measure, values in series.items()
        for spec, theirs in zip(specs[1:], values[1:], strict=True)
    ]
    macs = {name: count_macs(name, case) for name in (OURS, peer)}
    work = {measure: products * case.batch * macs[OURS] for measure, products in PRODUCTS.items()}
    shares = {
        measure: macs_per_turn / median(series[measure][0]) / max(rates) for measure, macs_per_turn in work.items()
    }
    return StepReport(machine.describe_machine(device), case, rows, macs, max(rates), shares, difference)


def _device(case: Case) -> torch.device:
    if case.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device is cuda, but torch finds no GPU here; use --device cpu.")
    return torch.device(case.device)


def _require_agreement(candidates: list[Implementation], case: Case) -> float:
    """Returns the relative difference between segray's and the peer's logits; raises ModelError if it is too large."""
    difference = max_relative_difference(candidates[0], candidates[1])
    if not difference <= MAX_DISAGREEMENT[case.dtype]:
        raise ModelError(
            f"the logits of the two models differ by {difference:.1e} of their range; expected at most "
            f"{MAX_DISAGREEMENT[case.dtype]:.0e}."
        )
    return difference


def _times(
    candidates: list[Implementation], turns: int, device: torch.device, log: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    """Returns the seconds of every turn, by measurement and implementation."""
    log(f"inference, {turns} turns per candidate ...")
    inference = time_interleaved([candidate.forward_inference for candidate in candidates], turns, device)
    log(f"training step, {turns} turns per candidate ...")
    steps = [partial(candidate.train_step, candidate.optimiser()) for candidate in candidates]
    return {"inference": inference, "train_step": time_interleaved(steps, turns, device)}


def _memory(
    specs: list[ImplementationSpec], case: Case, device: torch.device, log: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    if not memory.can_measure(device):
        log("memory is not measured: this system does not report the peak memory of a process")
        return {}
    log("peak memory of a training step, in a separate process per candidate ...")
    threads = torch.get_num_threads()
    return {"train_memory": [[memory.peak_bytes(spec, case, threads) / MIB] for spec in specs]}
