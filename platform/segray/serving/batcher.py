"""Batches of what waited while something else was computed: nobody waits for company, and company costs nobody time."""

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
    """What became of an item.

    Attributes:
        result: of it.
        seconds: that its batch took.
        batch_size: items in it.
    """

    result: Result
    seconds: float
    batch_size: int


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    """Somebody who waits for an item, since when."""

    since: float
    item: Item
    future: asyncio.Future[BatchResult[Result]]

    def told(self, found: BatchResult[Result] | Exception) -> None:
        if self.future.done():  # gave up
            return
        if isinstance(found, Exception):
            self.future.set_exception(found)
        else:
            self.future.set_result(found)


class Batcher(Generic[Item, Result]):
    """Computes batches of items of one kind, one at a time, in a thread of its own.

    The kind that waited longest is next; what is not urgent is computed only when nothing urgent waits.

    Args:
        compute: from a kind and some items of it to their results, in order.
        most: items of a kind in a batch at most.

    Attributes:
        batch_started_at: when the batch in hand was, as `perf_counter` counts; none if there is none.
    """

    def __init__(self, compute: Callable[[Any, Sequence[Item]], Sequence[Result]], most: Callable[[Any], int]) -> None:
        self._compute, self._most = compute, most
        self._lines: dict[tuple[bool, Hashable], deque[_Waiting[Item, Result]]] = {}  # first those that are not late
        self._thread = ThreadPoolExecutor(1, "compute")
        self._task: asyncio.Task[None] | None = None
        self.batch_started_at: float | None = None

    @property
    def num_pending(self) -> int:
        """Items that wait."""
        return sum(map(len, self._lines.values()))

    async def __call__(self, kind: Hashable, item: Item, is_urgent: bool = True) -> BatchResult[Result]:
        """Returns what becomes of an item; who is cancelled meanwhile leaves the line."""
        future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault((not is_urgent, kind), deque())
        line.append(_Waiting(perf_counter(), item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Computes as long as anything waits."""
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
        """Computes each by itself: what one of them caused is not for the others to suffer."""
        if len(taken) == 1:
            taken[0].told(error)
            return
        for one in taken:
            await self._do(kind, [one])
