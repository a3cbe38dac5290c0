"""Ctrl-C, and the SIGTERM of `ray job stop`: what they ask for, one after another."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_on_sigterm() -> None:
    """Has SIGTERM raise KeyboardInterrupt as Ctrl-C does, so that what a command holds is put away."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def handle_signals(*steps: Callable[[], None]) -> Iterator[None]:
    """Calls the first step at the first signal, the next at the next, and raises KeyboardInterrupt behind the last.

    Signals come to the main thread alone; in another there are none to heed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = list(steps)

    def heed_one(*_: Any) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    before = {number: signal.signal(number, heed_one) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # whose it was is not known to Python
                signal.signal(number, handler)
