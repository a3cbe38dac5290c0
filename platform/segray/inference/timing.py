"""Contenders that take turns, and what comes out of it: medians and a ratio."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

WARM_UP = 2


def time_interleaved(contenders: Sequence[Callable[[], object]], turns: int, device: torch.device) -> list[list[float]]:
    """Returns each contender's seconds, turn by turn: all run once, then all once more.

    Whatever slows the machine for a while slows all of them. The first rounds are for compilers, caches and
    allocators, and are not counted.
    """
    for _ in range(WARM_UP):
        for contender in contenders:
            contender()
    rounds = [[time_call(contender, device) for contender in contenders] for _ in range(turns)]
    return [list(series) for series in zip(*rounds, strict=True)]


def time_call(action: Callable[[], object], device: torch.device) -> float:
    """Returns how long an action took, work it left on the device included."""
    _wait_for(device)
    start = perf_counter()
    action()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
