"""Command `doctor`: checks whether a run or sweep can work on a cluster with a given Config."""

from argparse import Namespace
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segray.cli.parser import make_console, write_json
from segray.cluster.doctor.checks import CheckResult, Severity, max_severity
from segray.config import Config
from segray.core.errors import ClusterError
from segray.training.diagnose import diagnose_cluster

STYLES = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "red"}


def run(flags: Namespace, config: Config) -> None:
    """Checks the cluster, and prints and writes the results."""
    console = make_console()
    with console.status("") as status:
        results = diagnose_cluster(config, (lambda _line: None) if flags.quiet else status.update)
    _print_results(console, results)
    write_json(flags.json, [asdict(result) for result in results])
    failed = [result.check for result in results if result.level is Severity.FAIL]
    if failed:
        raise ClusterError(f"a run cannot work here; failed checks: {', '.join(failed)}.")


def _print_results(console: Console, results: list[CheckResult]) -> None:
    """Prints one line per check, and a fix below each check that did not pass."""
    table = Table(show_edge=False, pad_edge=False, header_style="", box=None)
    for title in ("", "check", "result"):
        table.add_column(title, overflow="fold")
    for result in results:
        fix = f"\n-> {result.fix}" if result.fix else ""
        level = Text(result.level, STYLES[result.level])
        table.add_row(level, Text(result.check), Text(result.found + fix))
    console.print(table)
    summary = {Severity.OK: "all checks passed", Severity.WARN: "a run can work; see the warnings", Severity.FAIL: ""}[
        max_severity(results)
    ]
    if summary:
        console.print(f"\n{summary}.", highlight=False)
