"""A bar for work of known length on many images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields what is called with what is being done, the images done and the images in all."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("images, left"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            if what != progress.tasks[0].description:  # another speed: what is there already came at once
                progress.reset(task, description=what, completed=done, total=total)
            progress.update(task, completed=done)

        yield show
