"""Contenders that take turns, and what comes out of it: medians and a ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """One measure of ours beside a peer's.

    Attributes:
        measure: what was measured; its name stays the same over versions.
        ours: median of our turns.
        peer: the other's name.
        theirs: median of its turns.
        unit: of both.
        ratio: above 1 is better for us.
        turns: turns that each had.
    """

    measure: str
    ours: float
    peer: str
    theirs: float
    unit: str
    ratio: float
    turns: int


def compared(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series of which less is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, other / mine, len(ours))


def compared_rates(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series of which more is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, mine / other, len(ours))


def in_turns(contenders: Sequence[Callable[[], object]], turns: int, device: torch.device) -> list[list[float]]:
    """Returns each contender's seconds, turn by turn: all run once, then all once more.

    Whatever slows the machine for a while slows all of them. The first rounds are for compilers, caches and
    allocators, and are not counted.
    """
    for _ in range(WARM_UP):
        for contender in contenders:
            contender()
    rounds = [[seconds(contender, device) for contender in contenders] for _ in range(turns)]
    return [list(series) for series in zip(*rounds, strict=True)]


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Returns how long an action took, work it left on the device included."""
    _wait_for(device)
    start = perf_counter()
    action()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Report:
    """What one run measured.

    Attributes:
        machine: what it ran on.
        case: what was measured, for people.
        rows: ours beside the peers'.
    """

    machine: dict[str, str | int]
    case: dict[str, str | int]
    rows: list[Row]
