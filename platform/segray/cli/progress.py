"""Progress of a run on the terminal, read from its journal: a bar on a terminal, plain lines in a log."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from time import monotonic
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from segray.core.errors import DataError
from segray.tracking.journal import JOURNAL, JournalReader, Record

POLL_S = 0.3
LINE_S = 10.0


class TrainingProgress:
    """Follows the journal of a run in a background thread until the context ends."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console, self._steps = console, steps
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._first: tuple[float, int] | None = None
        self._printed = -LINE_S
        self._bar = _bar(console)
        self._task = self._bar.add_task("train", total=steps, figures="starting the workers ...")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        if self._console.is_terminal:
            self._bar.stop()

    def follow(self, folder: Path) -> None:
        """Starts following the journal in a run's folder."""
        self._thread = threading.Thread(target=self._follow, args=(JournalReader(folder / JOURNAL),), daemon=True)
        self._thread.start()

    def _follow(self, journal: JournalReader) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(POLL_S)  # after the stop, one more pass reads the last records
            for record in self._new_records(journal):
                if record["kind"] == "metrics":
                    self._show(record)
                elif record["kind"] == "event":
                    self._print(record.get("text", ""))

    def _new_records(self, journal: JournalReader) -> Iterator[Record]:
        """Yields the new records. A damaged journal ends the display and not the run."""
        try:
            yield from journal.read()
        except DataError as error:
            self._print(str(error))
            self._stopped.set()

    def _show(self, record: Record) -> None:
        step = record.get("step", 0)
        values = {name: value for name, value in record.get("values", {}).items() if value is not None}
        figures = f"{_figures(values)}  remaining {self._remaining_time(record)}"
        self._bar.update(self._task, completed=step, figures=figures)
        has_validation = "val/miou" in values
        if has_validation or (not self._console.is_terminal and monotonic() - self._printed >= LINE_S):
            self._printed = monotonic()
            width = len(str(self._steps))
            line = f"step {step:>{width}}/{self._steps}  {figures}"
            self._print(f"{line}  {_validation(values)}" if has_validation else line)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def _remaining_time(self, record: Record) -> str:
        time_s, step = record["time_ms"] / 1000, record.get("step", 0)
        if self._first is None:
            self._first = (time_s, step)
            return "-:--"
        first_time_s, first_step = self._first
        rate = (step - first_step) / max(time_s - first_time_s, 1e-9)
        return format_duration((self._steps - step) / rate) if rate > 0 else "-:--"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(20),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def _figures(values: dict[str, Any]) -> str:
    return (
        f"loss {values.get('train/loss', nan):.4f}  lr {values.get('train/lr', nan):.2e}  "
        f"{values.get('train/images_per_s', nan):.1f} img/s  wait {values.get('train/data_wait', nan):.0%}"
    )


def _validation(values: dict[str, Any]) -> str:
    return f"val mIoU {values['val/miou']:.4f}  aAcc {values.get('val/aacc', nan):.4f}"


def format_duration(seconds: float) -> str:
    """Returns a duration in seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


ProgressReporter = Callable[[str, int, int], None]
"""Function that reports the current task, the number of completed images and the number of all images."""


@contextmanager
def progress_reporter(console: Console) -> Iterator[ProgressReporter]:
    """Yields a reporter: a bar on a terminal, plain lines in a log."""
    if console.is_terminal:
        with _rate_bar(console) as bar:
            yield _bar_reporter(bar)
    else:
        yield _LineReporter(console)


class _Rate(ProgressColumn):
    """Column with the rate in images per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s, remaining")


def _rate_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("images"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
    )


def _bar_reporter(bar: Progress) -> ProgressReporter:
    task = bar.add_task("starting", total=None)

    def show(description: str, completed: int, total: int) -> None:
        if description != bar.tasks[0].description:  # the images completed before a new task do not count for its rate
            bar.reset(task, description=description, completed=completed, total=total)
        bar.update(task, completed=completed, total=total)

    return show


class _LineReporter:
    """Prints a progress line every LINE_S seconds, and none for short work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task = ""
        self._start, self._first, self._printed = 0.0, 0, 0.0

    def __call__(self, description: str, completed: int, total: int) -> None:
        now = monotonic()
        if description != self._task:
            self._task, self._start, self._first, self._printed = description, 0.0, completed, now
        if completed > self._first and not self._start:  # the startup time does not count for the rate
            self._start, self._first = now, completed
        if now - self._printed >= LINE_S and completed > self._first:
            self._printed = now
            rate = (completed - self._first) / (now - self._start)
            remaining = format_duration((total - completed) / rate)
            line = f"{description} {completed}/{total} images, {rate:.1f} images/s, remaining {remaining}"
            self._console.print(line, highlight=False)
