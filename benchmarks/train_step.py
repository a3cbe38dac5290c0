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
    case: Case, peer: str, turns: int, *, compiled: bool = False, say: Callable[[str], None]
) -> StepReport:
    """Compares segray with a peer.

    Args:
        case: measured case.
        peer: name of the peer.
        turns: number of turns of each implementation.
        compiled: whether segray is compiled and compared with both the eager and the compiled peer.
        say: callback that receives progress messages.

    Raises:
        ModelError: the outputs differ, the peer's library is not installed, or the device is missing.
    """
    device, dtype = _device(case), DTYPES[case.dtype]
    entries = [
        ImplementationSpec(OURS, compiled),
        ImplementationSpec(peer),
        *([ImplementationSpec(peer, True)] if compiled else []),
    ]
    contenders = [build_implementation(entry, case) for entry in entries]
    differs = _agreed(contenders, case)
    rates = [machine.matrix_rate(device, dtype)]
    series = _times(contenders, turns, device, say) | _memory(entries, case, device, say)
    rates.append(machine.matrix_rate(device, dtype))
    rows = [
        time_row(measure, str(entry), values[0], theirs, UNITS[measure])
        for measure, values in series.items()
        for entry, theirs in zip(entries[1:], values[1:], strict=True)
    ]
    macs = {name: count_macs(name, case) for name in (OURS, peer)}
    work = {measure: products * case.batch * macs[OURS] for measure, products in PRODUCTS.items()}
    shares = {measure: made / median(series[measure][0]) / max(rates) for measure, made in work.items()}
    return StepReport(machine.describe_machine(device), case, rows, macs, max(rates), shares, differs)


def _device(case: Case) -> torch.device:
    if case.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device is cuda, and torch finds no GPU here; use --device cpu.")
    return torch.device(case.device)


def _agreed(contenders: list[Implementation], case: Case) -> float:
    """Returns the relative difference between segray's and the peer's logits; raises ModelError if it is too large."""
    differs = max_relative_difference(contenders[0], contenders[1])
    if not differs <= MAX_DISAGREEMENT[case.dtype]:
        raise ModelError(
            f"the two models differ by {differs:.1e} of the logits' range; expected at most "
            f"{MAX_DISAGREEMENT[case.dtype]:.0e}: there is nothing to compare."
        )
    return differs


def _times(
    contenders: list[Implementation], turns: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    """Returns the seconds of every turn, by measurement and implementation."""
    say(f"inference, {turns} turns each ...")
    inference = time_interleaved([one.forward_inference for one in contenders], turns, device)
    say(f"train step, {turns} turns each ...")
    steps = [partial(one.train_step, one.optimiser()) for one in contenders]
    return {"inference": inference, "train_step": time_interleaved(steps, turns, device)}


def _memory(
    entries: list[ImplementationSpec], case: Case, device: torch.device, say: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    if not memory.can_measure(device):
        say("memory is not measured: this system does not tell a process's peak")
        return {}
    say("peak memory of a train step, in a process of its own each ...")
    threads = torch.get_num_threads()
    return {"train_memory": [[memory.peak_bytes(entry, case, threads) / 2**20] for entry in entries]}
