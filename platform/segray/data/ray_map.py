"""Work on inputs, one task of the cluster each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segray.core.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")


def map_on_cluster(function: Callable[[In], Out], inputs: Sequence[In]) -> Iterator[tuple[int, Out]]:
    """Yields (index, function(input)) as they come, each input being one task of the cluster, of one CPU.

    Twice as many tasks as there are CPUs are at work or wait, so that an autoscaler adds nodes. Those still run to
    their end when the iterator is closed or fails, which waits for them: what they write may be gone over next. A task
    whose worker or node dies is tried again, three times.

    Raises:
        DataError: the function raised one, or its task died each time.
    """

    def task(one: In) -> Out | DataError:
        try:
            return function(one)
        except DataError as error:
            return error  # as a value: raised, it would come back in an error of Ray's, with two tracebacks

    remote = ray.remote(num_cpus=1, max_retries=3)(task)
    waiting = iter(enumerate(inputs))
    pending: dict[Any, int] = {}
    try:
        while True:
            for index, one in islice(waiting, _room(len(pending))):
                pending[remote.remote(one)] = index
            if not pending:
                return
            (first, *_), _ = ray.wait(list(pending))
            index, result = pending.pop(first), _got(first)
            if isinstance(result, DataError):
                raise result
            yield index, result
    except KeyboardInterrupt:  # the process ends, and the cluster its tasks
        pending.clear()
        raise
    finally:  # not cancelled: where that meets a task's end, Ray 2.60 aborts the process
        if pending:
            ray.wait(list(pending), num_returns=len(pending), fetch_local=False)


def _room(pending: int) -> int:
    return max(0, 2 * max(1, int(ray.cluster_resources().get("CPU", 1))) - pending)


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError:  # a defect: its traceback tells where
        raise
    except RayError as error:
        raise DataError(f"a task died each time it was tried ({error}); has every node enough memory?") from error
