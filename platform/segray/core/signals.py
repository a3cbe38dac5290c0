"""Handling of SIGINT (Ctrl-C) and SIGTERM (`ray job stop`)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise KeyboardInterrupt, like Ctrl-C, so that the command releases its resources."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def handle_signals(*steps: Callable[[], None]) -> Iterator[None]:
    """Calls one step per signal, in order, and raises KeyboardInterrupt for each signal after the last step.

    Only the main thread receives signals. In other threads, this context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    remaining = list(steps)

    def handle(*_: Any) -> None:
        if not remaining:
            raise KeyboardInterrupt
        remaining.pop(0)()

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # None: the handler was not installed from Python
                signal.signal(number, handler)
