"""Contenders that take turns, and what comes out of it: medians and a ratio."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


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


def time_row(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series of which less is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, other / mine, len(ours))


def rate_row(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series of which more is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, mine / other, len(ours))


@dataclass(frozen=True)
class BenchmarkReport:
    """What one run measured.

    Attributes:
        machine: what it ran on.
        case: what was measured, for people.
        rows: ours beside the peers'.
    """

    machine: dict[str, str | int]
    case: dict[str, str | int]
    rows: list[Row]
