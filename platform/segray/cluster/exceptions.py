"""What went wrong on a cluster, told as it was raised there."""

from segray.core.errors import SegrayError


def root_cause(error: BaseException) -> SegrayError | None:
    """Returns the segray error that lies at the bottom of an error Ray raised, if there is one."""
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
    """Returns why something failed in one line: a worker's own error, where workers raised any."""
    failures = [*getattr(error.__cause__, "worker_failures", {}).values()]
    told = failures[0] if failures else getattr(error, "cause", None) or error  # Ray dresses a task's error in its own
    lines = str(told).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _plain(error: SegrayError) -> SegrayError:
    """Returns the error as it was raised: Ray dresses it in a class of its own with the remote traceback in it."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
