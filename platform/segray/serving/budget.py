"""Budgets that clients share."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network


def client_name(host: str) -> str:
    """Returns the name of a client in queues and budgets.

    It is the IPv4 address of the client, or the /64 network of its IPv6 address, because one machine may use all
    addresses of such a network.
    """
    try:
        address = ip_address(host)
    except ValueError:  # not an address, for example in a test
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address) >> 64 << 64, 64)))


class SharedBudget:
    """Budget that one client cannot exhaust: a client may use at most half of what the other clients leave free.

    One greedy client thus uses half of the budget, and n greedy clients use 1 / (n + 1) of it each. A client whose
    first reservation does not fit into the rest is refused as well.

    Args:
        limit: size of the budget.

    Attributes:
        used: reserved amount of all clients.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.used = limit, 0.0
        self._used_by: defaultdict[str, float] = defaultdict(float)

    def reserve(self, client: str, amount: float) -> bool:
        """Reserves an amount for a client and returns `True`, or returns `False` if too little is left."""
        if self._used_by[client] + amount > self.limit - self.used:
            self._forget_idle(client)
            return False
        self._used_by[client] += amount
        self.used += amount
        return True

    def release(self, client: str, amount: float) -> None:
        """Returns a reserved amount."""
        self._used_by[client] -= amount
        self.used -= amount
        self._forget_idle(client)

    @contextmanager
    def reservation(self, client: str) -> Iterator[Callable[[float], bool]]:
        """Yields a function that reserves an amount and returns whether it fits. Returns all of it at the end."""
        total = 0.0

        def grow(amount: float) -> bool:
            nonlocal total
            is_reserved = self.reserve(client, amount)
            total += amount if is_reserved else 0.0
            return is_reserved

        try:
            yield grow
        finally:
            self.release(client, total)

    def _forget_idle(self, client: str) -> None:
        if self._used_by[client] <= 0:
            del self._used_by[client]
