"""Errors that segray raises for causes outside its code: users, files, networks.

Every error has one message: the wrong name or path, the expected value, and a fix. Each takes one string argument,
which keeps it picklable, so errors pass between processes unchanged.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_LISTED = 20
MAX_LINE_LENGTH = 300
MAX_MESSAGE_LINE = 2000
"""Length at which a line of a message is shortened: a name in a file may have any length."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
EXIT_INTERRUPTED = 130
"""Exit code of a command that is interrupted."""


class SegrayError(Exception):
    """Base class of all errors of segray. `exit_code` is the exit code of the command."""

    exit_code = 1

    def __str__(self) -> str:
        """Returns the message. Control characters, which a name in a file may contain, are escaped.

        Of a line of more than 2,000 characters, the middle is left out.
        """
        text = _CONTROL.sub(lambda match: repr(match[0])[1:-1], super().__str__())
        return "\n".join(map(_shorten, text.split("\n"))) if len(text) > MAX_MESSAGE_LINE else text


def _shorten(line: str) -> str:
    if len(line) <= MAX_MESSAGE_LINE:
        return line
    half = MAX_MESSAGE_LINE // 2
    return f"{line[:half]} [... {len(line) - 2 * half} characters ...] {line[-half:]}"


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
    """A worker has too little memory."""


class StepOutOfMemoryError(OutOfMemoryError):
    """A worker has too little memory for the images of a training step."""


class ServingError(SegrayError):
    """The server cannot start, or is temporarily unavailable."""


class RunStoppedError(SegrayError):
    """A run was stopped gracefully by a signal or request."""

    exit_code = EXIT_INTERRUPTED


def format_list(lines: Sequence[str], max_lines: int = MAX_LISTED) -> str:
    """Returns the first `max_lines` lines as an indented block, and the number of the remaining lines."""
    shown = [f"\n  {' '.join(line.splitlines())}" for line in lines[:max_lines]]  # names may contain line breaks
    if len(lines) > max_lines:
        shown.append(f"\n  ... and {len(lines) - max_lines} more")
    return "".join(shown)


def first_line(error: BaseException, max_length: int = MAX_LINE_LENGTH) -> str:
    """Returns the first line of an error's message, cut at `max_length`, or its class name if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip()[:max_length] if lines else type(error).__name__


def did_you_mean(name: str, valid_names: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` with the closest valid name, or an empty string if no name is close."""
    close = get_close_matches(name, list(valid_names), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def is_encodable(name: str) -> bool:
    """Returns True if a file name can be encoded as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def root_cause(error: BaseException) -> SegrayError | None:
    """Returns the segray error that caused an error raised by Ray, or None if there is none."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if isinstance(current, SegrayError):
            return _unwrap(current)
        if id(current) not in seen:
            seen.add(id(current))
            worker_failures = getattr(current, "worker_failures", {})
            causes = [
                getattr(current, "cause", None),
                current.__cause__,
                current.__context__,
                *worker_failures.values(),
            ]
            pending += [cause for cause in causes if isinstance(cause, BaseException)]
    return None


def cause_summary(error: BaseException) -> str:
    """Returns the cause of an error as one line of text. Errors of training workers take precedence."""
    failures = [*getattr(error.__cause__, "worker_failures", {}).values()]
    cause = failures[0] if failures else getattr(error, "cause", None) or error  # Ray wraps the error of a task
    lines = str(cause).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _unwrap(error: SegrayError) -> SegrayError:
    """Returns the original error. Ray wraps it in its own class, with the remote traceback."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
