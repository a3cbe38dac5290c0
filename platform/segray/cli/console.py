"""What people see is written as it is: no brackets of a path or class name are taken for markup, no line is cut."""

from typing import TextIO

from rich.console import Console


def make_console(quiet: bool = False, file: TextIO | None = None) -> Console:
    """Returns a console on a file, standard output by default; quiet, it shows nothing."""
    return Console(quiet=quiet, file=file, soft_wrap=True, markup=False)
