"""Allocation of CPUs, GPUs and threads to workers, by pure functions.

Ray schedules by logical CPUs; a worker computes with threads. A worker's share is the number of CPUs of its node
divided by the number of workers on the node. The worker runs as many threads as its share has CPUs, but reserves only
slightly more than half of the share. The rest remains free for Ray Data's read tasks: if the workers reserved all
logical CPUs, no read task could start, and the run would deadlock. With slightly more than half, CPUs also remain free
when the workers of a lost node move to the other nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from segray.config import ServeConfig
from segray.core.errors import CapacityError

RESERVED_FRACTION = 0.51  # fraction of a worker's share


@dataclass(frozen=True)
class NodeResources:
    """Resources of a node that is alive, or that the autoscaler can start.

    Attributes:
        cpus: number of CPUs.
        gpus: number of GPUs.
    """

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class WorkerResources:
    """Resources of each worker of a run.

    Attributes:
        workers: number of workers.
        device: "cpu" or "cuda".
        threads: number of threads with which a worker computes and decodes.
        cpus: number of logical CPUs that a worker reserves.
        gpus: number of GPUs that a worker reserves.
        read_cpus: number of logical CPUs left for the read tasks of a worker.
        free_cpus: number of unreserved logical CPUs on all nodes, divided by the number of workers.
    """

    workers: int
    device: str
    threads: int
    cpus: float
    gpus: int
    read_cpus: float
    free_cpus: float = 0.0

    def __str__(self) -> str:
        gpu = ", 1 GPU" if self.gpus else ""
        return (
            f"{self.workers} x {self.device} worker: {self.threads} threads, {self.cpus:g} logical CPUs{gpu} "
            f"each; {self.read_cpus:g} for reading"
        )


def allocate_workers(
    nodes: Sequence[NodeResources],
    workers: int,
    device: str,
    setting: str = "--train.workers",
    min_workers: int | None = None,
) -> WorkerResources:
    """Returns the resources of each worker on a cluster that can grow to `nodes`.

    Args:
        nodes: all nodes that the cluster has or can start.
        workers: requested number of workers, with one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which uses GPUs if the cluster has any.
        setting: flag that sets `workers`, for the error message.
        min_workers: minimum number of workers to allocate if the cluster cannot hold `workers`. By default, all.

    Raises:
        CapacityError: the cluster can never hold the workers.
    """
    if device == "auto":
        device = "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"
    capacity = _gpu_capacity(nodes) if device == "cuda" else _cpu_capacity(nodes)
    if min_workers is not None and min_workers <= capacity < workers:
        workers = capacity
    if workers > capacity:
        raise CapacityError(_capacity_message(nodes, workers, device, capacity, setting))
    share = _smallest_share(nodes, workers, device)
    threads = max(1, int(share))
    reserved = round(share * RESERVED_FRACTION, 4)
    free = sum(node.cpus for node in nodes) / workers - reserved
    return WorkerResources(workers, device, threads, reserved, int(device == "cuda"), share - reserved, free)


@dataclass(frozen=True)
class TrialSlots:
    """Resources of the trials of a sweep.

    Attributes:
        num_concurrent: number of concurrent trials.
        placement: resources of each worker of a trial when all concurrent trials run.
    """

    num_concurrent: int
    placement: WorkerResources


def allocate_trials(
    nodes: Sequence[NodeResources], workers: int, device: str, max_concurrent: int | None = None
) -> TrialSlots:
    """Returns the number of concurrent trials, and their resources, on a cluster that can grow to `nodes`.

    The cluster can hold the workers of all these trials at the same time, and each worker leaves CPUs for reading, so
    trials never wait for each other.

    Args:
        nodes: all nodes that the cluster has or can start.
        workers: number of workers per trial, with one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which uses GPUs if the cluster has any.
        max_concurrent: requested number of concurrent trials. Defaults to the capacity of the cluster.

    Raises:
        CapacityError: the cluster can never hold a trial, or the requested number of concurrent trials.
    """
    device = allocate_workers(nodes, workers, device).device
    capacity = (_gpu_capacity(nodes) if device == "cuda" else _cpu_capacity(nodes)) // workers
    if max_concurrent is not None and max_concurrent > capacity:
        raise CapacityError(
            f"tune.max_concurrent is {max_concurrent}, with {workers} workers each; the cluster can hold {capacity} "
            f"such trials at once; use --tune.max_concurrent {capacity}."
        )
    count = capacity if max_concurrent is None else max_concurrent
    return TrialSlots(count, replace(allocate_workers(nodes, count * workers, device), workers=workers))


def _gpu_capacity(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.gpus) for node in nodes if node.cpus >= 1)


def _cpu_capacity(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.cpus) for node in nodes)


def _smallest_share(nodes: Sequence[NodeResources], workers: int, device: str) -> float:
    """Returns the CPU share of a worker on the node with the smallest share."""
    if device == "cuda":
        return min(node.cpus / node.gpus for node in nodes if node.gpus >= 1 and node.cpus >= 1)
    usable = sorted((node for node in nodes if node.cpus >= 1), key=lambda node: -node.cpus)
    used = usable[:workers]
    return max(1.0, min(node.cpus for node in used) / ceil(workers / len(used)))


def _capacity_message(nodes: Sequence[NodeResources], workers: int, device: str, capacity: int, setting: str) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    needed = "one GPU" if device == "cuda" else "one CPU"
    fix = "use --train.device cpu, or a cluster with GPUs" if device == "cuda" else "use a cluster with CPUs"
    if capacity:
        fix = f"use {setting} {capacity}"
    return (
        f"{setting.removeprefix('--')} is {workers}, with {needed} each; the cluster can hold {capacity}: "
        f"it has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes; {fix}."
    )


def replica_device(settings: ServeConfig, nodes: Sequence[NodeResources]) -> str:
    """Returns the device of the server's replicas, "cpu" or "cuda"."""
    has_gpus = _gpu_capacity(nodes) > 0
    return "cuda" if settings.device == "cuda" or (settings.device == "auto" and has_gpus) else "cpu"


def replica_options(settings: ServeConfig, device: str) -> dict[str, float]:
    """Returns Ray's resource options of a replica."""
    return {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": settings.cpus_per_replica}


def require_replica_node(settings: ServeConfig, device: str, nodes: Sequence[NodeResources]) -> None:
    """Checks that a node can hold a replica.

    Raises:
        CapacityError: no node can, now or after the autoscaler has started nodes.
    """
    if device == "cuda" and not any(node.gpus >= 1 for node in nodes):
        raise CapacityError(
            f"serve.device is {settings.device}, and no node of the cluster has a GPU; add GPU nodes, or set "
            "serve.device cpu."
        )
    if device == "cpu" and not any(node.cpus >= settings.cpus_per_replica for node in nodes):
        raise CapacityError(
            f"serve.cpus_per_replica is {settings.cpus_per_replica}, and no node of the cluster has "
            f"{settings.cpus_per_replica} CPUs; add nodes, or reduce it."
        )


def default_num_workers(nodes: Sequence[NodeResources], device: str) -> int:
    """Returns the number of workers that use the whole cluster: one per GPU, or one per node with a CPU; minimum 1."""
    gpus = sum(int(node.gpus) for node in nodes)
    if device == "cuda" or (device == "auto" and gpus):
        return max(1, gpus)
    return max(1, sum(node.cpus >= 1 for node in nodes))


def max_num_workers(nodes: Sequence[NodeResources], device: str) -> int:
    """Returns the maximum number of workers with one GPU, or one CPU, each that the cluster can hold; minimum 1."""
    gpus = _gpu_capacity(nodes)
    return max(1, gpus if device == "cuda" or (device == "auto" and gpus) else _cpu_capacity(nodes))
