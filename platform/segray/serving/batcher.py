"""Dynamic batching: items that arrive during a forward pass form the next batch. No item waits for a fuller batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchResult(Generic[Result]):
    """Result of one item.

    Attributes:
        result: computed result of the item.
        seconds: duration of its batch in seconds.
        batch_size: number of items in its batch.
    """

    result: Result
    seconds: float
    batch_size: int


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    """Queued item with its arrival time and future."""

    since: float
    item: Item
    future: asyncio.Future[BatchResult[Result]]

    def told(self, found: BatchResult[Result] | Exception) -> None:
        if self.future.done():  # cancelled by the caller
            return
        if isinstance(found, Exception):
            self.future.set_exception(found)
        else:
            self.future.set_result(found)


class Batcher(Generic[Item, Result]):
    """Computes batches of items of the same kind, one batch at a time, in a separate thread.

    The next batch has the kind of the item that has waited longest. Items that are not urgent are computed only when
    no urgent item waits.

    Args:
        compute: function that maps a kind and a list of items to their results in the same order.
        most: function that returns the maximum batch size of a kind.

    Attributes:
        batch_started_at: start of the current batch as a `perf_counter` value, or `None` without a batch.
    """

    def __init__(self, compute: Callable[[Any, Sequence[Item]], Sequence[Result]], most: Callable[[Any], int]) -> None:
        self._compute, self._most = compute, most
        # Keys are (is_late, kind). False sorts first.
        self._lines: dict[tuple[bool, Hashable], deque[_Waiting[Item, Result]]] = {}
        self._thread = ThreadPoolExecutor(1, "compute")
        self._task: asyncio.Task[None] | None = None
        self.batch_started_at: float | None = None

    @property
    def num_pending(self) -> int:
        """Number of queued items."""
        return sum(map(len, self._lines.values()))

    async def __call__(self, kind: Hashable, item: Item, is_urgent: bool = True) -> BatchResult[Result]:
        """Queues an item and returns its result. Cancelling the call removes the item from the queue."""
        future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault((not is_urgent, kind), deque())
        line.append(_Waiting(perf_counter(), item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Computes batches until the queue is empty."""
        try:
            while self._lines:
                (is_late, kind), line = min(self._lines.items(), key=lambda entry: (entry[0][0], entry[1][0].since))
                taken = list[_Waiting[Item, Result]]()
                while line and len(taken) < self._most(kind):
                    one = line.popleft()
                    taken += [] if one.future.done() else [one]
                if not line:
                    del self._lines[is_late, kind]
                await self._do(kind, taken)
        finally:
            self._task = None

    async def _do(self, kind: Hashable, taken: Sequence[_Waiting[Item, Result]]) -> None:
        if not taken:
            return
        begun = self.batch_started_at = perf_counter()
        items = [one.item for one in taken]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, kind, items)
        except Exception as error:
            await self._apart(kind, taken, error)
            return
        finally:
            self.batch_started_at = None
        seconds = perf_counter() - begun
        for one, result in zip(taken, results, strict=True):
            one.told(BatchResult(result, seconds, len(taken)))

    async def _apart(self, kind: Hashable, taken: Sequence[_Waiting[Item, Result]], error: Exception) -> None:
        """Computes each item of a failed batch separately, so that one bad item does not fail the others."""
        if len(taken) == 1:
            taken[0].told(error)
            return
        for one in taken:
            await self._do(kind, [one])
