"""Benchmark of the all-reduce between nodes, which DDP uses for the gradients of every step."""

from datetime import timedelta
from time import perf_counter

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=10)
ROUNDS = 3


def time_all_reduce(backend: str, address: str, rank: int, world: int, count: int) -> float:
    """Returns the duration in seconds of an all-reduce of `count` float32 values: the minimum of several rounds.

    Args:
        backend: backend of torch.distributed, "gloo" or "nccl".
        address: `tcp://host:port` of the node with rank 0.
        rank: rank of this node.
        world: number of nodes.
        count: number of values.

    Raises:
        RuntimeError: the nodes cannot connect, or a connection is lost.
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
