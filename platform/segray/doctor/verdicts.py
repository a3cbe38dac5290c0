"""What was found, a line for each check: in order, worth a look, or in the way of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MOST_NAMED = 3


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Verdict:
    """What a check came to.

    Attributes:
        check: its name.
        level: whether a run can work with it.
        found: what was seen.
        fix: what to do about it; empty where there is nothing to do.
    """

    check: str
    level: Level
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def named(nodes: Iterable[str]) -> str:
    """Returns the names of nodes, of many the first few."""
    names = list(nodes)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names[:MOST_NAMED])}{more}"


def worst(verdicts: Iterable[Verdict]) -> Level:
    """Returns the worst level there is."""
    order = list(Level)
    return max((verdict.level for verdict in verdicts), key=order.index, default=Level.OK)
