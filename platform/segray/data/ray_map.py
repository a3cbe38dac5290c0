"""Parallel map over inputs, with one Ray task per input."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")


def map_on_cluster(function: Callable[[In], Out], inputs: Sequence[In]) -> Iterator[tuple[int, Out]]:
    """Yields (index, function(input)) in order of completion; each input is one Ray task with one CPU.

    At most twice as many tasks as CPUs are submitted at a time, so that an autoscaler adds nodes. If the iterator is
    closed or fails, it waits for the running tasks, because a later call may overwrite their outputs. A task whose
    worker or node dies is retried up to three times.

    Raises:
        DataError: the function raised one, exhausted the memory, or its task died on every attempt.
    """

    def task(value: In) -> Out | DataError:
        try:
            return function(value)
        except Exception as error:  # returned as a value: Ray wraps a raised error and adds a second traceback
            if is_out_of_memory(error):
                return DataError(f"a task exhausted the memory of its node ({error}); use nodes with more memory.")
            if isinstance(error, DataError):
                return error
            raise

    remote = ray.remote(num_cpus=1, max_retries=3)(task)
    waiting = iter(enumerate(inputs))
    pending: dict[Any, int] = {}
    try:
        while True:
            for index, value in islice(waiting, _num_free_slots(len(pending))):
                pending[remote.remote(value)] = index
            if not pending:
                return
            (done, *_), _ = ray.wait(list(pending))
            index, result = pending.pop(done), _get_result(done)
            if isinstance(result, DataError):
                raise result
            yield index, result
    except KeyboardInterrupt:  # the process exits, and Ray stops its tasks
        pending.clear()
        raise
    finally:  # tasks are not cancelled: Ray 2.60 aborts the process if a task ends while it is cancelled
        if pending:
            ray.wait(list(pending), num_returns=len(pending), fetch_local=False)


def _num_free_slots(num_pending: int) -> int:
    return max(0, 2 * max(1, int(ray.cluster_resources().get("CPU", 1))) - num_pending)


def _get_result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError:  # a bug in the function; the traceback shows its location
        raise
    except RayError as error:
        raise DataError(f"a task died on every attempt ({error}); check that every node has enough memory.") from error
