"""Interleaved timing of several functions."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

WARM_UP = 2


def time_interleaved(functions: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Returns the times in seconds of each function, one per round. Each round runs all functions once.

    Interleaving distributes temporary slowdowns of the machine over all functions. The first rounds warm up compilers,
    caches and allocators and are not included in the result.
    """
    for _ in range(WARM_UP):
        for function in functions:
            function()
    times = [[time_call(function, device) for function in functions] for _ in range(rounds)]
    return [list(series) for series in zip(*times, strict=True)]


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Returns the duration of a call in seconds, including the work it enqueued on the device."""
    _synchronize(device)
    start = perf_counter()
    function()
    _synchronize(device)
    return perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
