"""Results of interleaved measurements: medians and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One measurement of segray compared with a peer.

    Attributes:
        measure: name of the measurement; it is stable across versions.
        ours: median of segray's turns.
        peer: name of the peer.
        theirs: median of the peer's turns.
        unit: unit of both values.
        ratio: ratio of segray and the peer; above 1 is better for segray.
        turns: number of turns of each.
    """

    measure: str
    ours: float
    peer: str
    theirs: float
    unit: str
    ratio: float
    turns: int


def time_row(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series for which lower is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, other / mine, len(ours))


def rate_row(measure: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> Row:
    """Returns the row of two series for which higher is better."""
    mine, other = median(ours), median(theirs)
    return Row(measure, mine, peer, other, unit, mine / other, len(ours))


@dataclass(frozen=True)
class BenchmarkReport:
    """The results of one benchmark run.

    Attributes:
        machine: description of the machine.
        case: readable description of the measured case.
        rows: measurements of segray compared with the peers.
    """

    machine: dict[str, str | int]
    case: dict[str, str | int]
    rows: list[Row]
