"""Results of the checks: ok, warn or fail."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAX_NAMED = 3


class Severity(StrEnum):
    """Severity of a result."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        check: name of the check.
        level: severity of the result.
        found: description of the finding.
        fix: suggested fix, or an empty string if none is needed.
    """

    check: str
    level: Severity
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def format_nodes(nodes: Iterable[str]) -> str:
    """Returns the names of the first few nodes and the number of the others."""
    names = list(nodes)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names[:MAX_NAMED])}{more}"


def max_severity(verdicts: Iterable[CheckResult]) -> Severity:
    """Returns the highest severity of the results, or OK if there are none."""
    order = list(Severity)
    return max((verdict.level for verdict in verdicts), key=order.index, default=Severity.OK)
