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
    least: int | None = None,
) -> WorkerResources:
    """Returns the resources of each worker on a cluster that can grow to `nodes`.

    Args:
        nodes: all nodes that the cluster has or can start.
        workers: requested number of workers, with one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which uses GPUs if the cluster has any.
        setting: flag that sets `workers`, for the error message.
        least: minimum number of workers to allocate if the cluster cannot hold `workers`. By default, it must hold all.

    Raises:
        CapacityError: the cluster can never hold the workers.
    """
    if device == "auto":
        device = "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"
    fits = _by_gpu(nodes) if device == "cuda" else _by_cpu(nodes)
    if least is not None and least <= fits < workers:
        workers = fits
    if workers > fits:
        raise CapacityError(_refusal(nodes, workers, device, fits, setting))
    share = _share(nodes, workers, device)
    threads = max(1, int(share))
    reserved = round(share * RESERVED_FRACTION, 4)
    spare = sum(node.cpus for node in nodes) / workers - reserved
    return WorkerResources(workers, device, threads, reserved, int(device == "cuda"), share - reserved, spare)


@dataclass(frozen=True)
class TrialSlots:
    """Resources of the trials of a sweep.

    Attributes:
        num_concurrent: number of concurrent trials.
        placement: resources of each worker of a trial when all concurrent trials run.
    """

    num_concurrent: int
    placement: WorkerResources


def allocate_trials(nodes: Sequence[NodeResources], workers: int, device: str, wanted: int | None = None) -> TrialSlots:
    """Returns the number of concurrent trials, and their resources, on a cluster that can grow to `nodes`.

    The cluster can hold the workers of all these trials at the same time, and each worker leaves CPUs for reading, so
    trials never wait for each other.

    Args:
        nodes: all nodes that the cluster has or can start.
        workers: number of workers per trial, with one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which uses GPUs if the cluster has any.
        wanted: requested number of concurrent trials. Defaults to the capacity of the cluster.

    Raises:
        CapacityError: the cluster can never hold a trial, or the requested number of concurrent trials.
    """
    one = allocate_workers(nodes, workers, device)
    fits = (_by_gpu(nodes) if one.device == "cuda" else _by_cpu(nodes)) // workers
    if wanted is not None and wanted > fits:
        raise CapacityError(
            f"tune.max_concurrent is {wanted}, with {workers} workers each; the cluster can hold {fits} such trials at "
            f"once; use --tune.max_concurrent {fits}."
        )
    count = fits if wanted is None else wanted
    return TrialSlots(count, replace(allocate_workers(nodes, count * workers, one.device), workers=workers))


def _by_gpu(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.gpus) for node in nodes if node.cpus >= 1)


def _by_cpu(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.cpus) for node in nodes)


def _share(nodes: Sequence[NodeResources], workers: int, device: str) -> float:
    """Returns the CPU share of a worker on the node with the smallest share."""
    if device == "cuda":
        return min(node.cpus / node.gpus for node in nodes if node.gpus >= 1 and node.cpus >= 1)
    usable = sorted((node for node in nodes if node.cpus >= 1), key=lambda node: -node.cpus)
    spread = usable[: min(workers, len(usable))]
    return max(1.0, min(node.cpus for node in spread) / ceil(workers / len(spread)))


def _refusal(nodes: Sequence[NodeResources], workers: int, device: str, fits: int, setting: str) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    needs = "one GPU" if device == "cuda" else "one CPU"
    other = "use --train.device cpu, or a cluster with GPUs" if device == "cuda" else "use a cluster with CPUs"
    advice = f"use {setting} {fits}" if fits else other
    return (
        f"{setting.removeprefix('--')} is {workers}, with {needs} each; the cluster can hold {fits}: "
        f"it has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes; {advice}."
    )


def default_num_workers(nodes: Sequence[NodeResources], device: str) -> int:
    """Returns the number of workers that use the whole cluster: one per GPU, or one per node with a CPU; minimum 1."""
    gpus = sum(int(node.gpus) for node in nodes)
    if device == "cuda" or (device == "auto" and gpus):
        return max(1, gpus)
    return max(1, sum(node.cpus >= 1 for node in nodes))


def max_num_workers(nodes: Sequence[NodeResources], device: str) -> int:
    """Returns the maximum number of workers with one GPU, or one CPU, each that the cluster can hold; minimum 1."""
    gpus = _by_gpu(nodes)
    return max(1, gpus if device == "cuda" or (device == "auto" and gpus) else _by_cpu(nodes))
