"""How fast nodes sum what they hold, as DDP has its workers do with every step's gradients."""

from datetime import timedelta
from time import perf_counter

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=10)
ROUNDS = 3


def time_all_reduce(backend: str, address: str, rank: int, world: int, count: int) -> float:
    """Returns the seconds that the sum of `count` float32 over all nodes takes: the best of a few.

    Args:
        backend: "gloo" or "nccl", of torch.distributed.
        address: `tcp://host:port` of the first.
        rank: of this one.
        world: how many there are.
        count: numbers.

    Raises:
        RuntimeError: they do not meet, or lose each other.
    """
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        values = torch.ones(count, device="cuda" if backend == "nccl" else "cpu")
        took = []
        for _ in range(1 + ROUNDS):
            began = perf_counter()
            dist.all_reduce(values)
            values[0].item()  # waits for the device
            took.append(perf_counter() - began)
        return min(took[1:])
    finally:
        dist.destroy_process_group()
