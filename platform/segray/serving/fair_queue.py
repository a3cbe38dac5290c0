"""Fair queue: a limited number of slots, which clients receive in turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class _WaitingRequest:
    """A request that waits for a slot: its cost, and the future of its rank."""

    cost: float
    rank: asyncio.Future[float]


class FairQueue:
    """Slots for concurrent work. Waiting clients get them in the order of start-time fair queueing.

    A client's rank is the work for which it received slots, counted from the least served waiting client. So a client
    that sends much waits for itself, and a client that sends little is next. Requests of one client keep their order.
    A client is charged when its request receives a slot, so a request that is cancelled before costs nothing.

    Args:
        num_slots: maximum number of requests with a slot.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = self._num_free = num_slots
        self._clock = 0.0
        self._next_rank: dict[str, float] = {}
        self._waiting: dict[str, deque[_WaitingRequest]] = {}

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return sum(not request.rank.done() for requests in self._waiting.values() for request in requests)

    @asynccontextmanager
    async def slot(self, client: str, cost: float) -> AsyncIterator[float]:
        """Waits for a slot, holds it during the block, and yields the rank of the request. Low ranks are next.

        Args:
            client: name of the client.
            cost: estimated duration of the work in seconds.
        """
        rank = await self._acquire(client, cost)
        try:
            yield rank
        finally:
            self._release()

    async def _acquire(self, client: str, cost: float) -> float:
        if self._num_free:
            self._num_free -= 1
            return self._charge(client, cost)
        request = _WaitingRequest(cost, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(request)
        try:
            return await request.rank
        except asyncio.CancelledError:
            if request.rank.cancelled():
                self._remove(client, request)
            else:  # the slot arrived at the same time
                self._release()
            raise

    def _remove(self, client: str, request: _WaitingRequest) -> None:
        requests = self._waiting.get(client, deque())
        if request in requests:  # else `_release` has removed it
            requests.remove(request)
            if not requests:
                del self._waiting[client]

    def _release(self) -> None:
        """Passes a slot to the next request of the least served client, or keeps it free."""
        while self._waiting:
            client = min(self._waiting, key=self._rank)
            request = self._waiting[client].popleft()
            if not self._waiting[client]:
                del self._waiting[client]
            if not request.rank.done():  # the request was not cancelled
                request.rank.set_result(self._charge(client, request.cost))
                break
        else:
            self._num_free += 1
        # A client behind the clock starts at the clock again, so its past need not be kept.
        self._next_rank = {client: rank for client, rank in self._next_rank.items() if rank > self._clock}
        if self._num_free == self._num_slots:
            self._clock, self._next_rank = 0.0, {}

    def _rank(self, client: str) -> float:
        return max(self._clock, self._next_rank.get(client, 0.0))

    def _charge(self, client: str, cost: float) -> float:
        """Charges a client and returns the rank that it had before."""
        rank = self._clock = self._rank(client)
        self._next_rank[client] = rank + cost
        return rank
