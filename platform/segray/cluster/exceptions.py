"""Extraction of the original errors from the errors that Ray raises."""

from segray.core.errors import SegrayError


def root_cause(error: BaseException) -> SegrayError | None:
    """Returns the segray error that caused an error raised by Ray, or None if there is none."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, SegrayError):
            return _plain(found)
        if id(found) not in seen:
            seen.add(id(found))
            failures = getattr(found, "worker_failures", {})
            inner = [getattr(found, "cause", None), found.__cause__, found.__context__, *failures.values()]
            waiting += [one for one in inner if isinstance(one, BaseException)]
    return None


def one_line(error: BaseException) -> str:
    """Returns the cause of an error as one line of text. Errors of training workers take precedence."""
    failures = [*getattr(error.__cause__, "worker_failures", {}).values()]
    told = failures[0] if failures else getattr(error, "cause", None) or error  # Ray wraps the error of a task
    lines = str(told).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _plain(error: SegrayError) -> SegrayError:
    """Returns the original error. Ray wraps it in its own class, with the remote traceback."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
