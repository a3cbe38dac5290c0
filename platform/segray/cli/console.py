"""Console output without markup and cropping, so that paths and class names with brackets print unchanged."""

from typing import TextIO

from rich.console import Console


def make_console(quiet: bool = False, file: TextIO | None = None) -> Console:
    """Returns a console.

    Args:
        quiet: whether the console prints nothing.
        file: file to write to. Defaults to standard output.
    """
    return Console(quiet=quiet, file=file, soft_wrap=True, markup=False)
