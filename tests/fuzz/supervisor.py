"""Runs inputs in a child process, and ends the child after the time limit of an input."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .readers import READERS

START_LIMIT_S = 180.0
NICE = 10
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """Outcome of one input, its duration and the folder of its files, which exists only for a finding."""

    status: str
    detail: str
    seconds: float
    folder: Path


class Supervisor:
    """Parent of the process that runs the inputs; one process at a time.

    Args:
        root: folder of the inputs and of the log of the child.
        seed: seed of all inputs.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self._seed = root, seed
        self._child: subprocess.Popen[str] | None = None
        self._group = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, name: str, index: int) -> Result:
        """Runs one input and returns its outcome. A crash or a hang of the child is a finding."""
        reader = READERS[name]
        folder = self._root / f"{name}-{index}"
        if self._child is None or self._group != reader.group:
            self._start(reader.group)
        assert self._child is not None
        assert self._child.stdin is not None
        started_at = time.monotonic()
        self._child.stdin.write(f"{name} {index} {self._seed} {folder}\n")
        self._child.stdin.flush()
        report = self._receive(reader.limit_s)
        if report is not None:
            return Result(report["status"], report["detail"], report["seconds"], folder)
        seconds = time.monotonic() - started_at
        return Result("finding", self._describe_end(reader.limit_s), seconds, folder)

    def _start(self, group: str) -> None:
        self._stop()
        home = self._root / "home"
        home.mkdir(exist_ok=True)
        environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._log = (self._root / "worker.log").open("w")
        self._group = group
        self._child = subprocess.Popen(
            ["nice", f"-n{NICE}", sys.executable, "-m", "tests.fuzz.worker", group, str(self._root)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True},
            cwd=REPOSITORY,
            env=environment,
        )
        if self._receive(START_LIMIT_S) is None:
            raise RuntimeError(f"the worker did not start; see {self._root / 'worker.log'}")

    def _receive(self, limit_s: float) -> dict[str, Any] | None:
        """Returns the next report, or `None` after the time limit or the end of the child."""
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                return None
        line = self._child.stdout.readline()
        return json.loads(line) if line else None

    def _describe_end(self, limit_s: float) -> str:
        """Ends the child and returns why it gave no report, with the stack that it printed."""
        assert self._child is not None
        is_hanging = self._child.poll() is None and not self._exits_soon()
        if is_hanging:
            self._child.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
            self._exits_soon(20.0)
        code = self._child.poll()
        self._stop()
        if code == 1:
            raise RuntimeError(f"the worker itself failed; see {self._root / 'worker.log'}")
        place = self._last_stack()
        return f"hang over {limit_s:g} s at {place}" if is_hanging else f"crash: exit code {code} at {place}"

    def _last_stack(self) -> str:
        """Returns the innermost frames of segray in the stack of the main thread that faulthandler printed last."""
        dump = (self._root / "worker.log").read_text(errors="replace").rpartition("Fatal Python error")[2]
        main = dump.partition("Current thread")[2].partition("\n\n")[0]
        frames = re.findall(r'File "[^"]*/(\w+\.py)", line (\d+) in (\w+)', main)
        return " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:6])

    def _exits_soon(self, limit_s: float = 2.0) -> bool:
        assert self._child is not None
        try:
            self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
            self._log.close()
