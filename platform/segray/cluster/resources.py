"""How many CPUs, GPUs and threads a worker gets: one pure rule from a laptop to a cluster of GPU nodes.

Logical CPUs are Ray's bookkeeping; threads are what really runs. A worker's share of its node is the node's CPUs
divided by the workers it is made for. The worker may run as many threads as its share, but reserves only half of
it: what is left always lets Ray Data's read tasks start. (Workers that reserve every logical CPU leave the reads
none, and both sides wait for ever.) It is a little more than half, so that also the workers of a node that was lost,
squeezed onto the others, leave some.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from segray.core.errors import CapacityError

RESERVED_FRACTION = 0.51  # of a worker's share


@dataclass(frozen=True)
class NodeResources:
    """What a node offers, or would offer once the autoscaler has started it."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run gets.

    Attributes:
        workers: how many there are.
        device: "cpu" or "cuda".
        threads: threads a worker computes and decodes with.
        cpus: logical CPUs a worker reserves.
        gpus: GPUs a worker reserves.
        read_cpus: logical CPUs left to the read tasks of a worker.
        free_cpus: a worker's part of the logical CPUs that no worker reserves, on all nodes.
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
    """Returns what each of `workers` gets on a cluster that can grow to `nodes`.

    Args:
        nodes: every node there is or ever can be.
        workers: how many are wanted; one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which takes GPUs if there are any.
        setting: the flag that `workers` comes from.
        least: if it is given, fewer workers, down to so many, do where there is no room for more.

    Raises:
        CapacityError: the cluster can never hold them.
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
    """What the trials of a sweep get.

    Attributes:
        num_concurrent: trials that run at once.
        placement: what each worker of one trial gets beside all the others.
    """

    num_concurrent: int
    placement: WorkerResources


def allocate_trials(nodes: Sequence[NodeResources], workers: int, device: str, wanted: int | None = None) -> TrialSlots:
    """Returns how many trials run at once on a cluster that can grow to `nodes`.

    All their workers have a place at once, and each leaves CPUs for reading, so none ever waits for another.

    Args:
        nodes: every node there is or ever can be.
        workers: of a trial; one GPU each, or at least one CPU each.
        device: "cpu", "cuda" or "auto", which takes GPUs if there are any.
        wanted: trials at once; none takes as many as there is room for.

    Raises:
        CapacityError: the cluster can never hold a trial, or not so many at once.
    """
    one = allocate_workers(nodes, workers, device)
    fits = (_by_gpu(nodes) if one.device == "cuda" else _by_cpu(nodes)) // workers
    if wanted is not None and wanted > fits:
        raise CapacityError(
            f"tune.concurrent is {wanted}, with {workers} workers each; the cluster can hold {fits} such trials at "
            f"once; use --tune.concurrent {fits}."
        )
    count = fits if wanted is None else wanted
    return TrialSlots(count, replace(allocate_workers(nodes, count * workers, one.device), workers=workers))


def _by_gpu(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.gpus) for node in nodes if node.cpus >= 1)


def _by_cpu(nodes: Sequence[NodeResources]) -> int:
    return sum(int(node.cpus) for node in nodes)


def _share(nodes: Sequence[NodeResources], workers: int, device: str) -> float:
    """Returns the CPUs of the poorest node that one worker may use."""
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
    """Returns how many workers use the whole cluster: one a GPU, or one a node with a CPU, at least one."""
    gpus = sum(int(node.gpus) for node in nodes)
    if device == "cuda" or (device == "auto" and gpus):
        return max(1, gpus)
    return max(1, sum(node.cpus >= 1 for node in nodes))


def max_num_workers(nodes: Sequence[NodeResources], device: str) -> int:
    """Returns how many workers of one GPU, or of one CPU, the whole cluster holds, at least one."""
    gpus = _by_gpu(nodes)
    return max(1, gpus if device == "cuda" or (device == "auto" and gpus) else _by_cpu(nodes))
