"""A run's progress on the terminal, read from its journal: a bar for a person, plain lines for a log."""

import threading
from math import nan
from pathlib import Path
from time import monotonic
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from segray.tracking.journal import JOURNAL, Record, Tail

POLL_S = 0.3
LINE_S = 10.0


class TrainingProgress:
    """Follows a journal in a thread of its own, until closed."""

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

    def watch(self, folder: Path) -> None:
        """Starts following the journal in a run's folder."""
        self._thread = threading.Thread(target=self._follow, args=(Tail(folder / JOURNAL),), daemon=True)
        self._thread.start()

    def _follow(self, tail: Tail) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(POLL_S)  # and once more after the end, for the last records
            for record in tail.read():
                if record["kind"] == "metrics":
                    self._show(record)
                elif record["kind"] == "event":
                    self._print(record["text"])

    def _show(self, record: Record) -> None:
        step, values = record["step"], record["values"]
        figures = f"{_figures(values)}  left {self._left(record)}"
        self._bar.update(self._task, completed=step, figures=figures)
        validated = "val/miou" in values
        if validated or (not self._console.is_terminal and monotonic() - self._printed >= LINE_S):
            self._printed = monotonic()
            width = len(str(self._steps))
            line = f"step {step:>{width}}/{self._steps}  {figures}"
            self._print(f"{line}  {_validation(values)}" if validated else line)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def _left(self, record: Record) -> str:
        now = record["time_ms"] / 1000
        if self._first is None:
            self._first = (now, record["step"])
            return "-:--"
        since, first = self._first
        rate = (record["step"] - first) / max(now - since, 1e-9)
        return duration((self._steps - record["step"]) / rate) if rate > 0 else "-:--"


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
        f"loss {values.get('train/loss', nan):.4f}  lr {values['train/lr']:.2e}  "
        f"{values['train/images_per_s']:.1f} img/s  wait {values['train/data_wait']:.0%}"
    )


def _validation(values: dict[str, Any]) -> str:
    return f"val mIoU {values['val/miou']:.4f}  aAcc {values['val/aacc']:.4f}"


def duration(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
