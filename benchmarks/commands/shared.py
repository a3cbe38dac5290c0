"""Functions shared by all benchmarks: flags, the table of results and the JSON file."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.interleave import Row
from segray.cli import parser
from segray.cli.parser import CommandParser
from segray.config import paths
from segray.core.errors import ConfigError


def add_common(parser: CommandParser, turns: int) -> None:
    """Adds the flags of a benchmark with turns."""
    parser.add_argument("--turns", type=int, default=turns, metavar="N", help=f"turns per candidate (default: {turns})")
    add_benchmark_flags(parser)


def add_benchmark_flags(parser: CommandParser) -> None:
    """Adds the flags of every benchmark."""
    parser.add_common("json", "quiet")


def require_positive(flags: argparse.Namespace, *names: str) -> None:
    """Validates that counts are at least 1.

    Raises:
        ConfigError: a count is less than 1; the message contains its name.
    """
    for name in names:
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected at least 1.")


def make_logger(flags: argparse.Namespace) -> Callable[[str], None]:
    """Returns a function that prints a line, unless --quiet is given."""

    def log(line: str) -> None:
        if not flags.quiet:
            print(line, flush=True)

    return log


def print_case(machine: dict[str, Any], case: dict[str, Any]) -> None:
    """Prints the measured case and the machine."""
    for description in (case, machine):
        print(", ".join(f"{name} {value}" for name, value in description.items()))
    print()


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    names = max(len("measure"), *(len(row.measure) for row in rows))
    peers = max(len("peer"), *(len(row.peer) for row in rows))
    print(f"{'measure':<{names}}{'segray':>16}  {'peer':<{peers}}{'peer value':>16}{'ratio':>9}")
    for row in rows:
        ours, theirs = (f"{value:.4g} {row.unit}" for value in (row.ours, row.theirs))
        print(f"{row.measure:<{names}}{ours:>16}  {row.peer:<{peers}}{theirs:>16}{row.ratio:>8.2f}x")


def write_json(flags: argparse.Namespace, report: Any) -> None:
    """Writes the report and the command to the file of --json, if given."""
    arguments = paths.redact(shlex.join(["python", *sys.argv]))
    parser.write_json(flags.json, {"command": arguments} | asdict(report))
