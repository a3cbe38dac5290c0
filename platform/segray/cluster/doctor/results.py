"""What was found, a line for each check: in order, worth a look, or in the way of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAX_NAMED = 3


class Severity(StrEnum):
    """How much it matters."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class CheckResult:
    """What a check came to.

    Attributes:
        check: its name.
        level: whether a run can work with it.
        found: what was seen.
        fix: what to do about it; empty where there is nothing to do.
    """

    check: str
    level: Severity
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def format_nodes(nodes: Iterable[str]) -> str:
    """Returns the names of nodes, of many the first few."""
    names = list(nodes)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names[:MAX_NAMED])}{more}"


def max_severity(verdicts: Iterable[CheckResult]) -> Severity:
    """Returns the worst level there is."""
    order = list(Severity)
    return max((verdict.level for verdict in verdicts), key=order.index, default=Severity.OK)
