"""Fair queue: a limited number of slots, which clients receive in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush


class FairQueue:
    """Slots for concurrent work. Waiting requests of several clients get them in the order of start-time fair queueing.

    A request's rank is the work that its client received before it, counted from the least served waiting request. So
    a client that sends much waits for itself, and a client that sends little is next. Requests of one client keep
    their order.

    Args:
        num_slots: maximum number of requests with a slot.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = self._num_free = num_slots
        self._clock = 0.0
        self._next_rank: dict[str, float] = {}
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return sum(not future.done() for _, _, future in self._waiting)

    @asynccontextmanager
    async def slot(self, client: str, cost: float) -> AsyncIterator[float]:
        """Waits for a slot, holds it during the block, and yields the rank of the request. Low ranks are next.

        Args:
            client: name of the client.
            cost: amount of work of the request, in any unit that is the same for all requests.
        """
        rank = self._take_rank(client, cost)
        await self._acquire(rank)
        try:
            yield rank
        finally:
            self._release()

    def _take_rank(self, client: str, cost: float) -> float:
        rank = max(self._clock, self._next_rank.get(client, 0.0))
        self._next_rank[client] = rank + cost
        return rank

    async def _acquire(self, rank: float) -> None:
        if self._num_free:
            self._num_free -= 1
            self._clock = max(self._clock, rank)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heappush(self._waiting, (rank, self._count, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # the slot arrived at the same time
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            rank, _, future = heappop(self._waiting)
            if not future.done():  # the request was not cancelled
                self._clock = max(self._clock, rank)
                future.set_result(None)
                return
        self._num_free += 1
        # A client behind the clock starts at the clock again, so its past need not be kept.
        self._next_rank = {client: rank for client, rank in self._next_rank.items() if rank > self._clock}
        if self._num_free == self._num_slots:
            self._clock, self._next_rank = 0.0, {}
