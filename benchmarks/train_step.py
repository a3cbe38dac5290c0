"""SegFormer beside a peer's: train step, inference, memory, multiply-accumulates, and the machine's own limit."""

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

# A train step multiplies each matrix three times: forward, and backward to its input and to its weights.
PRODUCTS = {"inference": 1, "train_step": 3}
UNITS = {"inference": "s", "train_step": "s", "train_memory": "MiB"}
MAX_DISAGREEMENT = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


@dataclass(frozen=True)
class StepReport:
    """What one run measured.

    Attributes:
        machine: what it ran on.
        case: what was measured.
        rows: ours beside the peer's.
        macs: multiply-accumulates of one image's forward pass, by contender.
        matrix_rate: multiply-accumulates per second of a matrix product on this device, in this run.
        share_of_rate: the part of that rate at which ours ran, by measure.
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
    """Returns ours beside a peer's at a case.

    Args:
        case: what to measure.
        peer: whom to measure against.
        turns: turns that each gets.
        compiled: whether ours is compiled, and stands beside the peer's as it is and compiled.
        say: called with what is measured next.

    Raises:
        ModelError: the two do not give the same answer, or the peer's library or the device is missing.
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
    """Returns how far ours is from the peer's; a fast wrong answer is worth nothing."""
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
    """Returns the seconds of every turn, by measure and contender."""
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
