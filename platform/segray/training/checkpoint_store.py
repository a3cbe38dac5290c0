"""Checkpoints of a run folder: listing, retention and background writing.

A checkpoint is written under a temporary name, synced to disk and then renamed. A folder named `step-NNNNNN` is
therefore always complete, even if a process dies while writing.
"""

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from segray.core.errors import CheckpointError, TrainingError
from segray.core.numbers import MIB
from segray.models import checkpoint

DIR_PATTERN = re.compile(r"step-(\d{6,})$")
TEMP_SUFFIX = ".partial"
SCORE_METRIC = "val/miou"
MAX_PENDING = 2  # each holds the complete state in memory


@dataclass(frozen=True)
class CheckpointInfo:
    """Complete checkpoint of a run.

    Attributes:
        step: number of optimiser steps made.
        score: val/miou of the checkpoint; `None` if it was not validated.
        folder: checkpoint folder.
    """

    step: int
    score: float | None
    folder: Path


def checkpoint_dir(run: Path, step: int) -> Path:
    """Returns the folder of a run's checkpoint at a step."""
    return run / f"step-{step:06d}"


def list_checkpoints(run: Path, warn: Callable[[str], None] = lambda _line: None) -> list[CheckpointInfo]:
    """Returns the complete checkpoints of a run, oldest first.

    Args:
        run: run folder.
        warn: callback that receives a line about each incomplete checkpoint.
    """
    found = []
    for folder in sorted(path for path in run.glob("step-*") if DIR_PATTERN.search(path.name)):
        try:
            meta = checkpoint.load_meta(folder)
            checkpoint.verify_files(folder, meta)
        except CheckpointError as error:
            warn(f"{error} It is skipped.")
            continue
        found.append(CheckpointInfo(meta.step, meta.metrics.get(SCORE_METRIC), folder))
    return sorted(found, key=lambda one: one.step)


def best_checkpoint(found: Iterable[CheckpointInfo]) -> CheckpointInfo | None:
    """Returns the validated checkpoint with the highest score. If scores are equal, the earliest one wins."""
    validated = [one for one in found if one.score is not None]
    return max(validated, key=lambda one: (one.score, -one.step), default=None)


def steps_to_keep(found: Sequence[CheckpointInfo], num_best: int, every: int | None) -> set[int]:
    """Returns the steps of the checkpoints to keep: the last one, the best ones, and multiples of `every`."""
    ranked = sorted((one for one in found if one.score is not None), key=lambda one: (-(one.score or 0), one.step))
    steps = {one.step for one in ranked[:num_best]} | {max((one.step for one in found), default=0)}
    return steps | {one.step for one in found if every is not None and one.step % every == 0}


class CheckpointWriter:
    """Writes the checkpoints of a run sequentially on a background thread.

    Args:
        run: run folder; it must have no other writer.
        num_best: number of checkpoints with the highest scores to keep.
        every: interval in steps; checkpoints at its multiples are also kept. `None` keeps no others.

    Attributes:
        latest_path: folder of the last written checkpoint; `None` before the first.
    """

    def __init__(self, run: Path, num_best: int = 1, every: int | None = None) -> None:
        self._run, self._num_best, self._every = run, num_best, every
        self._pool = ThreadPoolExecutor(1, "segray-checkpoints")
        self._waiting: deque[Future[None]] = deque()
        self.latest_path: str | None = None
        for left in run.glob(f"step-*{TEMP_SUFFIX}"):
            shutil.rmtree(left, ignore_errors=True)

    def submit(self, step: int, write: Callable[[Path], None]) -> None:
        """Schedules the checkpoint of a step.

        The background thread calls `write` with an empty folder and keeps the result as the checkpoint. This method
        blocks only if too many checkpoints are already pending.

        Args:
            step: step of the checkpoint.
            write: function that writes the checkpoint files to a folder.

        Raises:
            TrainingError: an earlier checkpoint could not be written.
        """
        self.raise_if_failed()
        while len(self._waiting) >= MAX_PENDING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, step, write))

    def raise_if_failed(self) -> None:
        """Checks the finished writes without waiting.

        Raises:
            TrainingError: an earlier checkpoint could not be written.
        """
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Waits until all pending checkpoints are written.

        Raises:
            TrainingError: a checkpoint could not be written.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        final = checkpoint_dir(self._run, step)
        partial = final.with_name(final.name + TEMP_SUFFIX)
        try:
            partial.mkdir()
            write(partial)
            _force_to_disk(partial)
            if final.exists():  # a run resumed from an older checkpoint writes the same one again
                shutil.rmtree(final)
            partial.rename(final)
            self.latest_path = str(final)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own errors
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(self._complaint(step, error)) from error
        self._prune()

    def _complaint(self, step: int, error: Exception) -> str:
        found = list_checkpoints(self._run)
        why = getattr(error, "strerror", None) or error
        room = shutil.disk_usage(self._run).free / MIB  # torch does not report a full disk
        last = f"the last whole one is {found[-1].folder.name}" if found else "there is no whole one yet"
        return (
            f"the checkpoint of step {step} cannot be written to {self._run} ({why}); {room:.0f} MiB are free "
            f"there; {last}; make room and go on with --resume {self._run}."
        )

    def _prune(self) -> None:
        found = list_checkpoints(self._run)
        steps = steps_to_keep(found, self._num_best, self._every)
        for one in found:
            if one.step not in steps:
                shutil.rmtree(one.folder, ignore_errors=True)


def _force_to_disk(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
