"""Command `doctor`: checks whether a run or sweep can work on a cluster with a given Config."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cluster.doctor.results import CheckResult, Severity, max_severity
from segray.config import Config
from segray.core.errors import ClusterError
from segray.training.diagnose import diagnose_cluster

STYLES = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "red"}


def main() -> None:
    """Runs the command."""
    run_command(_doctor)


def _doctor() -> None:
    parser = CommandParser(
        "Looks into a cluster, and whether the run or sweep of a config would work there.", with_config=True
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts for programs")
    parser.add_argument("--quiet", action="store_true", help="print the verdicts alone")
    flags, config = parser.parse()
    console = make_console()
    with console.status("") as status:
        verdicts = diagnose_cluster(_with_data(flags, config), (lambda _line: None) if flags.quiet else status.update)
    _show(console, verdicts)
    if flags.json:
        flags.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    wrong = [verdict.check for verdict in verdicts if verdict.level is Severity.FAIL]
    if wrong:
        raise ClusterError(f"a run would not work here: {', '.join(wrong)}.")


def _with_data(flags: Namespace, config: Config) -> Config:
    if not flags.data:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"root": flags.data})})


def _show(console: Console, verdicts: list[CheckResult]) -> None:
    """Prints one line per check, and a fix below each check that did not pass."""
    table = Table(show_edge=False, pad_edge=False, header_style="", box=None)
    for title in ("", "check", "found"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        fix = f"\n-> {verdict.fix}" if verdict.fix else ""
        level = Text(verdict.level, STYLES[verdict.level])
        table.add_row(level, Text(verdict.check), Text(verdict.found + fix))
    console.print(table)
    summary = {Severity.OK: "all in order", Severity.WARN: "a run would work; see above", Severity.FAIL: ""}[
        max_severity(verdicts)
    ]
    if summary:
        console.print(f"\n{summary}.", highlight=False)
