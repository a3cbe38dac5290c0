"""Extraction of the original errors from the errors that Ray raises."""

from segray.core.errors import SegrayError


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


def one_line(error: BaseException) -> str:
    """Returns the cause of an error as one line of text. Errors of training workers take precedence."""
    failures = [*getattr(error.__cause__, "worker_failures", {}).values()]
    cause = failures[0] if failures else getattr(error, "cause", None) or error  # Ray wraps the error of a task
    lines = str(cause).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _unwrap(error: SegrayError) -> SegrayError:
    """Returns the original error. Ray wraps it in its own class, with the remote traceback."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
