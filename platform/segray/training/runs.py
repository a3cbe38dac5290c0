"""Folders of runs and sweeps: lock, search for the latest unfinished one, and comparison of settings."""

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from segray.config import Config
from segray.core.errors import CheckpointError, ResumeError
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal

LOCK = "lock"


def find_latest(config: Config, is_match: Callable[[Path], bool]) -> Path | None:
    """Returns the folder of the latest unfinished run or sweep that matches, or `None`.

    Folders that another process has locked are skipped.

    Args:
        config: settings with resolved paths. If they contain a name, only the folder of that name is considered.
        is_match: function that returns `True` if the settings and the data of a folder match.
    """
    journals = list(Path(config.results).glob(f"{config.name or '*'}/{JOURNAL}"))
    journals.sort(key=_modification_time, reverse=True)
    return next((path.parent for path in journals if _is_resumable(path.parent, is_match)), None)


def _modification_time(path: Path) -> float:
    """Returns the time of the last change of a file, or 0 if another process has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_resumable(folder: Path, is_match: Callable[[Path], bool]) -> bool:
    try:
        return is_match(folder) and not is_finished(folder) and not is_locked(folder)
    except CheckpointError:
        return False


def require_run(folder: Path, resume: str, kind: str) -> None:
    """Checks that a folder contains a run or a sweep.

    Args:
        folder: folder to check.
        resume: value of --resume, for the error message.
        kind: "run" or "sweep", for the error message.

    Raises:
        ResumeError: the folder contains no journal or no settings.
    """
    if not (folder / JOURNAL).exists() or not (folder / checkpoint.CONFIG).exists():
        raise ResumeError(
            f"--resume is {resume}, which contains no {kind}; expected a folder that contains {JOURNAL}, or auto."
        )


def lock_run(folder: Path) -> IO[str]:
    """Locks the folder of a run or a sweep.

    The lock lasts until the returned file is closed or the process ends.

    Raises:
        ResumeError: another process holds the lock.
    """
    lock = (folder / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ResumeError(f"another process trains in {folder}; wait for that process or stop it.") from error
    return lock


def is_locked(folder: Path) -> bool:
    """Returns `True` if a process has locked the folder of a run or a sweep."""
    try:
        lock_run(folder).close()
    except ResumeError:
        return True
    return False


def is_finished(folder: Path) -> bool:
    """Returns `True` if the run or the sweep finished successfully."""
    statuses = [record.get("status") for record in Journal(folder).records() if record["kind"] == "end"]
    return bool(statuses) and statuses[-1] == "FINISHED"


def diff(stored: Mapping[str, object], current: Mapping[str, object]) -> dict[str, str]:
    """Returns a line for each setting whose stored and current values differ. A missing setting has the value None."""
    return {
        key: f"{key}: {stored.get(key)} -> {current.get(key)}"
        for key in {**stored, **current}
        if stored.get(key) != current.get(key)
    }
