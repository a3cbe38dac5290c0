"""Concurrent map with ordered results and a bounded number of pending inputs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_ordered(pool: Executor, function: Callable[[In], Out], inputs: Iterable[In], ahead: int) -> Iterator[Out]:
    """Yields function(input) for each input, in order.

    Args:
        pool: executor of the calls.
        function: function to call.
        inputs: inputs of the function.
        ahead: maximum number of calls that are submitted and not yet yielded.
    """
    pending: deque[Future[Out]] = deque()
    for item in inputs:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
