"""Work on many things with some threads, its results in order and no more of them at once than are used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_ordered(pool: Executor, function: Callable[[In], Out], inputs: Iterable[In], ahead: int) -> Iterator[Out]:
    """Yields function(input) in the inputs' order, at most `ahead` of them begun before they are asked for."""
    waiting: deque[Future[Out]] = deque()
    for one in inputs:
        waiting.append(pool.submit(function, one))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
