"""Dynamic batching: items that arrive during a forward pass form the next batch. No item waits for a fuller batch."""

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class AbandonedError(Exception):
    """Error with which a computation ends early because no caller waits for its results."""


ComputeFunction = Callable[[Any, Sequence[Item], Callable[[], None]], Sequence[Result]]
"""Maps a key, items and a function to the results of the items in the same order. Calls the function between steps."""


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
class _QueuedItem(Generic[Item, Result]):
    """Queued item with its order and future."""

    order: tuple[float, int]
    item: Item
    future: asyncio.Future[BatchResult[Result]]

    def __lt__(self, other: "_QueuedItem[Item, Result]") -> bool:
        return self.order < other.order

    def resolve(self, result: BatchResult[Result] | Exception) -> None:
        if self.future.done():  # cancelled by the caller
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Batcher(Generic[Item, Result]):
    """Computes batches of items with the same key, one batch at a time, in a separate thread.

    The next batch has the key of the item with the lowest rank. Among items of the same rank, it is the item that has
    waited longest.

    Args:
        compute: function that computes a batch.
        max_batch_size: function that returns the maximum batch size of a key.
        thread: executor with one thread for the computations.

    Attributes:
        batch_started_at: start of the current batch as a `perf_counter` value, or `None` without a batch.
        is_idle: event that is set while no item is queued or computed.
    """

    def __init__(
        self, compute: ComputeFunction[Item, Result], max_batch_size: Callable[[Any], int], thread: Executor
    ) -> None:
        self._compute, self._max_batch_size, self._thread = compute, max_batch_size, thread
        self._queues: dict[Hashable, list[_QueuedItem[Item, Result]]] = {}
        self._num_queued = 0
        self._task: asyncio.Task[None] | None = None
        self.batch_started_at: float | None = None
        self.is_idle = threading.Event()
        self.is_idle.set()

    @property
    def num_pending(self) -> int:
        """Number of queued items."""
        return sum(map(len, self._queues.values()))

    async def __call__(self, key: Hashable, item: Item, rank: float = 0.0) -> BatchResult[Result]:
        """Queues an item and returns its result. Cancelling the call removes the item from the queue."""
        future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()
        self._num_queued += 1
        heappush(self._queues.setdefault(key, []), _QueuedItem((rank, self._num_queued), item, future))
        if self._task is None:
            self.is_idle.clear()
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Computes batches until the queues are empty."""
        try:
            while self._queues:
                key, batch = self._take_batch()
                if batch:
                    await self._compute_batch(key, batch)
        finally:
            self._task = None
            self.is_idle.set()

    def _take_batch(self) -> tuple[Hashable, list[_QueuedItem[Item, Result]]]:
        """Removes the next batch from its queue, without the items that their callers have cancelled."""
        key, queue = min(self._queues.items(), key=lambda entry: entry[1][0])
        batch: list[_QueuedItem[Item, Result]] = []
        while queue and len(batch) < self._max_batch_size(key):
            queued = heappop(queue)
            if not queued.future.done():
                batch.append(queued)
        if not queue:
            del self._queues[key]
        return key, batch

    async def _compute_batch(self, key: Hashable, batch: Sequence[_QueuedItem[Item, Result]]) -> None:
        started_at = self.batch_started_at = perf_counter()
        items = [queued.item for queued in batch]

        def check() -> None:
            if all(queued.future.done() for queued in batch):
                raise AbandonedError

        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, key, items, check)
        except AbandonedError:
            return
        except Exception as error:
            await self._handle_failure(key, batch, error)
            return
        finally:
            self.batch_started_at = None
        seconds = perf_counter() - started_at
        for queued, result in zip(batch, results, strict=True):
            queued.resolve(BatchResult(result, seconds, len(batch)))

    async def _handle_failure(
        self, key: Hashable, batch: Sequence[_QueuedItem[Item, Result]], error: Exception
    ) -> None:
        """Computes each item of a failed batch separately, so that one bad item does not fail the others."""
        if len(batch) == 1:
            batch[0].resolve(error)
            return
        for queued in batch:
            await self._compute_batch(key, [queued])
