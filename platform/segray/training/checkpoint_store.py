"""Checkpoints of a run folder: atomic writing in the background, listing and retention.

A checkpoint is written under a temporary name, synced to disk and then renamed; it is renamed again before it is
removed. A folder named `step-NNNNNN` is therefore always complete, even if a process dies while it writes or removes
one. A checkpoint that was damaged later is renamed when a run resumes.
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
from segray.core.logging import warn_on_error
from segray.core.numbers import MIB
from segray.models import checkpoint
from segray.training.score import DEFAULT_SCORE, signed_score

DIR_PATTERN = re.compile(r"step-(\d{6,})$")
TEMP_SUFFIX = ".partial"
REMOVED_SUFFIX = f".removed{TEMP_SUFFIX}"
DAMAGED_SUFFIX = ".damaged"
MAX_PENDING = 2  # each holds the complete state in memory


@dataclass(frozen=True)
class CheckpointInfo:
    """Complete checkpoint of a run.

    Attributes:
        step: number of optimiser steps made.
        score: value of `train.score`, higher is better (negated if it is minimised); `None` if there is none.
        folder: checkpoint folder.
    """

    step: int
    score: float | None
    folder: Path


def checkpoint_dir(run: Path, step: int) -> Path:
    """Returns the folder of a run's checkpoint at a step."""
    return run / f"step-{step:06d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """Returns the folders of a run's checkpoints, also of damaged ones, oldest first."""
    return sorted((path for path in run.glob("step-*") if DIR_PATTERN.search(path.name)), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def list_checkpoints(
    run: Path, warn: Callable[[str], None] = lambda _line: None, score: str = DEFAULT_SCORE
) -> list[CheckpointInfo]:
    """Returns the complete checkpoints of a run, oldest first. Files are compared by size only.

    Args:
        run: run folder.
        warn: callback that receives a line about each checkpoint that is skipped because it is incomplete.
        score: metric that compares checkpoints.
    """
    checkpoints = []
    for folder in checkpoint_folders(run):
        try:
            meta = checkpoint.load_meta(folder)
            checkpoint.verify_files(folder, meta)
        except CheckpointError as error:
            warn(f"{error} It is skipped.")
            continue
        checkpoints.append(CheckpointInfo(meta.step, signed_score(meta.metrics, score), folder))
    return sorted(checkpoints, key=lambda info: info.step)


def latest_checkpoint(run: Path, warn: Callable[[str], None] = lambda _line: None) -> CheckpointInfo | None:
    """Returns the latest checkpoint of a run whose files match their checksums; `None` if the run has no checkpoint.

    Args:
        run: run folder.
        warn: callback that receives a line about each checkpoint that is skipped.

    Raises:
        CheckpointError: every checkpoint of the run is damaged.
        OSError: a checkpoint cannot be read.
    """
    for info in reversed(list_checkpoints(run, warn)):
        try:
            checkpoint.verify_checksums(info.folder, checkpoint.load_meta(info.folder))
        except CheckpointError as error:
            warn(f"{error} It is skipped.")
        else:
            return info
    if checkpoint_folders(run):
        raise CheckpointError(
            f"every checkpoint of {run} is damaged; restore a checkpoint folder from a copy, or remove all folders "
            f"{run}/step-* to start again at step 0."
        )
    return None


def set_aside_damaged(run: Path, latest: CheckpointInfo) -> None:
    """Renames the checkpoints after the latest undamaged one, so that retention and later resumes ignore them.

    Only the process that writes the checkpoints of the run may call this.
    """
    for folder in checkpoint_folders(run):
        if _step_of(folder) > latest.step:
            _rename(folder, DAMAGED_SUFFIX)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint. It is renamed first, so that a process that dies here leaves no damaged checkpoint.

    Raises:
        OSError: the folder cannot be renamed.
    """
    shutil.rmtree(_rename(folder, REMOVED_SUFFIX), ignore_errors=True)


def _rename(folder: Path, suffix: str) -> Path:
    """Appends a suffix to the name of a folder and returns the new path. An earlier folder of that name is removed."""
    target = folder.with_name(folder.name + suffix)
    if target.exists():
        shutil.rmtree(target)
    return folder.rename(target)


def best_checkpoint(checkpoints: Iterable[CheckpointInfo]) -> CheckpointInfo | None:
    """Returns the validated checkpoint with the highest score. If scores are equal, the earliest one wins."""
    validated = [info for info in checkpoints if info.score is not None]
    return max(validated, key=lambda info: (info.score, -info.step), default=None)


def steps_to_keep(checkpoints: Sequence[CheckpointInfo], num_best: int, every: int | None) -> set[int]:
    """Returns the steps of the checkpoints to keep: the last one, the best ones, and multiples of `every`."""
    ranked = sorted(
        (info for info in checkpoints if info.score is not None), key=lambda info: (-(info.score or 0.0), info.step)
    )
    steps = {info.step for info in ranked[:num_best]} | {max((info.step for info in checkpoints), default=0)}
    return steps | {info.step for info in checkpoints if every is not None and info.step % every == 0}


class CheckpointWriter:
    """Writes the checkpoints of a run sequentially on a background thread.

    Args:
        run: run folder; it must have no other writer.
        num_best: number of checkpoints with the highest scores to keep.
        every: interval in steps; checkpoints at its multiples are also kept. `None` keeps no others.
        score: metric that compares checkpoints.

    Attributes:
        latest_path: folder of the last written checkpoint; `None` before the first.
    """

    def __init__(self, run: Path, num_best: int = 1, every: int | None = None, score: str = DEFAULT_SCORE) -> None:
        self._run, self._num_best, self._every, self._score = run, num_best, every, score
        self._pool = ThreadPoolExecutor(1, "segray-checkpoints")
        self._pending: deque[Future[None]] = deque()
        self.latest_path: str | None = None
        for leftover in run.glob(f"step-*{TEMP_SUFFIX}"):
            shutil.rmtree(leftover, ignore_errors=True)

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
        while len(self._pending) >= MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, step, write))

    def raise_if_failed(self) -> None:
        """Checks the finished writes without waiting.

        Raises:
            TrainingError: an earlier checkpoint could not be written.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Waits until all pending checkpoints are written.

        Raises:
            TrainingError: a checkpoint could not be written.
        """
        while self._pending:
            self._pending.popleft().result()

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        final = checkpoint_dir(self._run, step)
        partial = final.with_name(final.name + TEMP_SUFFIX)
        try:
            partial.mkdir()
            write(partial)
            _force_to_disk(partial)
            # A run resumed from an older checkpoint writes the same one again.
            replaced = _rename(final, REMOVED_SUFFIX) if final.exists() else None
            partial.rename(final)
            _force_file_to_disk(self._run)  # the new name, before an older checkpoint is removed
            self.latest_path = str(final)
            if replaced is not None:
                shutil.rmtree(replaced, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own errors
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(self._error_message(step, error)) from error
        self._prune()

    def _error_message(self, step: int, error: Exception) -> str:
        checkpoints = list_checkpoints(self._run)
        reason = getattr(error, "strerror", None) or error
        free = shutil.disk_usage(self._run).free / MIB  # torch does not report a full disk
        latest = (
            f"the latest complete one is {checkpoints[-1].folder.name}" if checkpoints else "no complete one exists"
        )
        return (
            f"the checkpoint of step {step} cannot be written to {self._run} ({reason}); {free:.0f} MiB are free "
            f"there; {latest}; free disk space and resume with --resume {self._run}."
        )

    def _prune(self) -> None:
        checkpoints = list_checkpoints(self._run, score=self._score)
        kept = steps_to_keep(checkpoints, self._num_best, self._every)
        for info in checkpoints:
            if info.step not in kept:
                with warn_on_error(f"checkpoint {info.folder} cannot be removed"):
                    remove_checkpoint(info.folder)


def _force_to_disk(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        _force_file_to_disk(path)


def _force_file_to_disk(path: Path) -> None:
    """Syncs a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
