"""The errors that segray raises for whatever a user, a file or a network can cause.

Every error carries one message: what is wrong with which name or path, what was expected, what to do.
One string argument keeps them picklable, so they cross process borders unchanged.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_LISTED = 20
EXIT_INTERRUPTED = 130
"""What a command ends with that was asked to end."""


class SegrayError(Exception):
    """Base of all errors of segray; `exit_code` is what a command ends with."""

    exit_code = 1


class UserError(SegrayError):
    """Something the user wrote, named or supplied cannot work."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, ill-typed, out of range or impossible together with another."""


class DataError(UserError):
    """A dataset, shard, image or mask is missing, damaged or not as declared."""


class ModelError(UserError):
    """A model cannot be built as asked, or was given an input it does not take."""


class CheckpointError(UserError):
    """A checkpoint or weights file is missing, incomplete or of another model."""


class ResumeError(UserError):
    """A run cannot be gone on with as asked."""


class CapacityError(UserError):
    """The cluster can never hold what was asked for."""


class ClusterError(UserError):
    """The cluster is not fit for what was asked for."""


class RegistryError(UserError):
    """A model reference does not resolve, or the registry does not answer."""


class PromotionError(SegrayError):
    """A version was not promoted: a gate refused it, or somebody else was faster."""


class TrainingError(SegrayError):
    """A run started and failed."""


class OutOfMemoryError(TrainingError):
    """A device has no memory for what a run computes at once."""


class ServingError(SegrayError):
    """What is to answer requests cannot start, or not at the moment."""


class RunStoppedError(SegrayError):
    """A run was ended from outside, in order."""

    exit_code = EXIT_INTERRUPTED


def format_list(lines: Sequence[str], most: int = MAX_LISTED) -> str:
    """Returns the lines as an indented block, cut after `most` with the count of what was left out."""
    shown = [f"\n  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"\n  ... and {len(lines) - most} more")
    return "".join(shown)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known name, or nothing when none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def is_encodable(name: str) -> bool:
    """Returns whether a file's name can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
