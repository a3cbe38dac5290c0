"""`doctor`: whether a cluster, and what a Config names, is fit for the run."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segray.cli.command import Parser, end
from segray.cli.terminal import terminal
from segray.config import Config
from segray.doctor.examine import examine
from segray.doctor.verdicts import Level, Verdict, worst
from segray.errors import ClusterError

STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def main() -> None:
    """Runs the command."""
    end(_doctor)


def _doctor() -> None:
    parser = Parser(
        "Looks into a cluster, and whether the run or sweep of a config would work there.", with_config=True
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts for programs")
    parser.add_argument("--quiet", action="store_true", help="print the verdicts alone")
    flags, config = parser.parse()
    console = terminal()
    with console.status("") as status:
        verdicts = examine(_with_data(flags, config), (lambda _line: None) if flags.quiet else status.update)
    _show(console, verdicts)
    if flags.json:
        flags.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    wrong = [verdict.check for verdict in verdicts if verdict.level is Level.FAIL]
    if wrong:
        raise ClusterError(f"a run would not work here: {', '.join(wrong)}.")


def _with_data(flags: Namespace, config: Config) -> Config:
    if not flags.data:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"root": flags.data})})


def _show(console: Console, verdicts: list[Verdict]) -> None:
    """Prints a line for each check, and below those that are not in order what to do."""
    table = Table(show_edge=False, pad_edge=False, header_style="", box=None)
    for title in ("", "check", "found"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        fix = f"\n-> {verdict.fix}" if verdict.fix else ""
        level = Text(verdict.level, STYLES[verdict.level])
        table.add_row(level, Text(verdict.check), Text(verdict.found + fix))
    console.print(table)
    summary = {Level.OK: "all in order", Level.WARN: "a run would work; see above", Level.FAIL: ""}[worst(verdicts)]
    if summary:
        console.print(f"\n{summary}.", highlight=False)
