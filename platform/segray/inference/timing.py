"""Interleaved timing of several functions."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

WARM_UP = 2


def time_interleaved(contenders: Sequence[Callable[[], object]], turns: int, device: torch.device) -> list[list[float]]:
    """Returns the times in seconds of each function, one per turn. Each turn runs all functions once.

    Interleaving distributes temporary slowdowns of the machine over all functions. The first rounds warm up compilers,
    caches and allocators and are not included in the result.
    """
    for _ in range(WARM_UP):
        for contender in contenders:
            contender()
    rounds = [[time_call(contender, device) for contender in contenders] for _ in range(turns)]
    return [list(series) for series in zip(*rounds, strict=True)]


def time_call(action: Callable[[], object], device: torch.device) -> float:
    """Returns the duration of a call in seconds, including the work it enqueued on the device."""
    _wait_for(device)
    start = perf_counter()
    action()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
