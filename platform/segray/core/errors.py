"""Errors that segray raises for causes outside its code: users, files, networks.

Every error has one message: the wrong name or path, the expected value, and a fix. Each takes one string argument,
which keeps it picklable, so errors pass between processes unchanged.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_LISTED = 20
EXIT_INTERRUPTED = 130
"""Exit code of a command that is interrupted."""


class SegrayError(Exception):
    """Base class of all errors of segray. `exit_code` is the exit code of the command."""

    exit_code = 1


class UserError(SegrayError):
    """Base class of errors in user input."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, has a wrong type, is out of range or conflicts with another setting."""


class DataError(UserError):
    """A dataset, shard, image or mask is missing, damaged or different from its declaration."""


class ModelError(UserError):
    """A model cannot be built from its settings, or does not support an input."""


class CheckpointError(UserError):
    """A checkpoint or weights file is missing, is incomplete or belongs to another model."""


class ResumeError(UserError):
    """A run cannot be resumed."""


class CapacityError(UserError):
    """The cluster cannot be reached, or can never provide the requested resources."""


class ClusterError(UserError):
    """The cluster does not meet the requirements of a run or sweep."""


class RegistryError(UserError):
    """A model reference cannot be resolved, or the registry does not respond."""


class PromotionError(SegrayError):
    """A version was not promoted: it failed a gate, or another promotion was faster."""


class TrainingError(SegrayError):
    """A run failed after its start."""


class OutOfMemoryError(TrainingError):
    """A device has too little memory for a step of the run."""


class ServingError(SegrayError):
    """The server cannot start, or is temporarily unavailable."""


class RunStoppedError(SegrayError):
    """A run was stopped gracefully by a signal or request."""

    exit_code = EXIT_INTERRUPTED


def format_list(lines: Sequence[str], most: int = MAX_LISTED) -> str:
    """Returns the lines as an indented block, cut after `most` with the count of what was left out."""
    shown = [f"\n  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"\n  ... and {len(lines) - most} more")
    return "".join(shown)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` with the closest known name, or an empty string if no name is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def is_encodable(name: str) -> bool:
    """Returns True if a file name can be encoded as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
