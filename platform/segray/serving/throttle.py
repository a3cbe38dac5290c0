"""Throttling of work that is less urgent: it gets the time that urgent work leaves, but at least a fixed share."""

import threading
from collections.abc import Callable
from time import perf_counter

MIN_SHARE = 1 / 8
"""Minimum share of the time that throttled work gets while urgent work waits all the time."""
POLL_S = 0.2
"""Interval in seconds at which waiting work checks whether it is still needed."""


class Throttle:
    """Delays the steps of one thread while urgent work waits. A step of d seconds delays the next by up to 7 d seconds.

    Args:
        is_idle: event that is set while no urgent work waits.
    """

    def __init__(self, is_idle: threading.Event) -> None:
        self._is_idle = is_idle
        self._started_at = self._ready_at = perf_counter()

    def start(self, check: Callable[[], None]) -> None:
        """Waits until the next step may start.

        Args:
            check: function that is called before the step and while it waits. Its exceptions end the wait.
        """
        check()
        while (remaining := self._ready_at - perf_counter()) > 0 and not self._is_idle.wait(min(POLL_S, remaining)):
            check()
        self._started_at = perf_counter()

    def stop(self) -> None:
        """Ends a step."""
        now = perf_counter()
        self._ready_at = now + (now - self._started_at) * (1 / MIN_SHARE - 1)
