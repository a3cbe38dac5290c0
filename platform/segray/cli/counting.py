"""Progress of work of known length on many images: a bar for a person, plain lines for a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_S = 10.0

Show = Callable[[str, int, int], None]


@contextmanager
def counting(console: Console) -> Iterator[Show]:
    """Yields what is called with what is being done, the images done and the images in all."""
    if console.is_terminal:
        with _bar(console) as bar:
            yield _moving(bar)
    else:
        yield _Lines(console)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} a second, left")


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("images"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
    )


def _moving(bar: Progress) -> Show:
    task = bar.add_task("starting", total=None)

    def show(what: str, done: int, total: int) -> None:
        if what != bar.tasks[0].description:  # another speed: what is there already came at once
            bar.reset(task, description=what, completed=done, total=total)
        bar.update(task, completed=done, total=total)

    return show


class _Lines:
    """A line now and then, none of work that is soon done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what = ""
        self._began, self._first, self._printed = 0.0, 0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = monotonic()
        if what != self._what:
            self._what, self._began, self._first, self._printed = what, 0.0, done, now
        if done > self._first and not self._began:  # what took the start is no part of the rate
            self._began, self._first = now, done
        if now - self._printed >= LINE_S and done > self._first:
            self._printed = now
            rate = (done - self._first) / (now - self._began)
            left = _spelt((total - done) / rate)
            self._console.print(f"{what} {done}/{total} images, {rate:.1f} a second, left {left}", highlight=False)


def _spelt(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
