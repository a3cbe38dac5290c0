"""Runs inputs in a child process, and ends the child after the time limit of an input.

The limit counts the processor time of the child, because other programs may slow the machine down. A child that waits
without computing is ended after a limit of the wall time.
"""

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

START_LIMIT_S = 300.0
WALL_LIMIT_S = 180.0
POLL_S = 1.0
NICE = 10
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """Outcome of one input, its times, and the folder of its files, which exists only for a finding."""

    status: str
    detail: str
    cpu_s: float
    wall_s: float
    folder: Path


class Supervisor:
    """Parent of the process that runs the inputs; one process at a time.

    Args:
        root: folder of the inputs and of the log of the child.
        seed: seed of all inputs.
        wall_limit_s: longest wall time of an input, whose processor time is limited by its reader.
    """

    def __init__(self, root: Path, seed: int, wall_limit_s: float = WALL_LIMIT_S) -> None:
        self._root, self._seed, self._wall_limit_s = root, seed, wall_limit_s
        self._child: subprocess.Popen[str] | None = None
        self._group = ""
        root.mkdir(parents=True, exist_ok=True)

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
        started_at, cpu_before_s = time.monotonic(), self._cpu_s()
        self._child.stdin.write(f"{name} {index} {self._seed} {folder}\n")
        self._child.stdin.flush()
        report = self._receive(cpu_before_s + reader.limit_s, self._wall_limit_s)
        if report:
            return Result(report["status"], report["detail"], report["cpu_s"], report["wall_s"], folder)
        cpu_s, wall_s = self._cpu_s() - cpu_before_s, time.monotonic() - started_at
        detail = self._describe_hang(cpu_s, wall_s) if report is None else self._describe_crash()
        return Result("finding", detail, cpu_s, wall_s, folder)

    def command(self, group: str) -> list[str]:
        """Returns the command line of the child."""
        return ["nice", f"-n{NICE}", sys.executable, "-m", "tests.fuzz.worker", group, str(self._root)]

    def _start(self, group: str) -> None:
        self._stop()
        home = self._root / "home"
        home.mkdir(exist_ok=True)
        environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._log = (self._root / "worker.log").open("w")
        self._group = group
        self._child = subprocess.Popen(
            self.command(group),
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True},
            cwd=REPOSITORY,
            env=environment,
        )
        if not self._receive(START_LIMIT_S, START_LIMIT_S):
            raise RuntimeError(f"the worker did not start; see {self._root / 'worker.log'}")

    def _cpu_s(self) -> float:
        """Returns the processor time of the child since its start; 0 if it has ended."""
        assert self._child is not None
        try:
            fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # of user and system

    def _receive(self, cpu_limit_s: float, wall_limit_s: float) -> dict[str, Any] | None:
        """Returns the next report, an empty one if the child ended, or `None` at a limit.

        Args:
            cpu_limit_s: processor time of the child since its start.
            wall_limit_s: time from now.
        """
        assert self._child is not None
        assert self._child.stdout is not None
        until = time.monotonic() + wall_limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while not selector.select(POLL_S):
                if time.monotonic() > until or self._cpu_s() > cpu_limit_s:
                    return None
        line = self._child.stdout.readline()
        return {"status": "started", **json.loads(line)} if line else {}

    def _describe_hang(self, cpu_s: float, wall_s: float) -> str:
        """Ends the child and returns the times and the stack that it printed."""
        assert self._child is not None
        self._child.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
        self._await_end()
        self._stop()
        return f"hang over {cpu_s:.0f} s of processor time, {wall_s:.0f} s of wall time at {self._last_stack()}"

    def _describe_crash(self) -> str:
        """Returns the exit code of the child and the stack that it printed.

        Exit code 1 is an error of the programme itself, for example while it wrote the input.
        """
        code = self._await_end()
        self._stop()
        if code == 1:
            lines = (self._root / "worker.log").read_text(errors="replace").splitlines()
            return f"the worker itself failed: {lines[-1][:300] if lines else ''}"
        return f"crash: exit code {code} at {self._last_stack()}"

    def _await_end(self, limit_s: float = 60.0) -> int | None:
        """Returns the exit code; `None` if the child does not end within the limit."""
        assert self._child is not None
        try:
            return self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def _last_stack(self) -> str:
        """Returns the innermost frames of segray in the stack of the main thread that faulthandler printed last."""
        dump = (self._root / "worker.log").read_text(errors="replace").rpartition("Fatal Python error")[2]
        main = dump.partition("Current thread")[2].partition("\n\n")[0]
        frames = re.findall(r'File "[^"]*/(\w+\.py)", line (\d+) in (\w+)', main)
        return " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:6])

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
            self._log.close()
