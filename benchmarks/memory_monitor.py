"""Monitors the peak memory of a process and its workers, and of Ray's object store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

PROCESSES = Path("/proc")
POLL_S = 0.1
DAEMONS = ("raylet", "gcs_server", "/ray/", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class PeakMemory:
    """Peak memory in bytes.

    Attributes:
        memory: memory of the process, its children and Ray's workers together. Shared pages count once. Ray's daemons
            are excluded, because they do not depend on the workload.
        store: memory used in the object store.
    """

    memory: int = 0
    store: int = 0


@contextmanager
def monitor_memory(pid: int, poll_s: float = POLL_S) -> Iterator[PeakMemory]:
    """Samples the memory of a local process until the block exits, and updates the yielded peak."""
    peak, stopped, store = PeakMemory(), Event(), _store()

    def sample() -> None:
        while not stopped.wait(poll_s):
            peak.memory = max(peak.memory, sum(map(_bytes, _workers(pid))))
            peak.store = max(peak.store, store())

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def is_supported() -> bool:
    """Returns True if the system reports the memory of processes, as Linux does."""
    return (PROCESSES / "self" / "smaps_rollup").exists()


def _store() -> Callable[[], int]:
    if not ray.is_initialized():
        return lambda: 0
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return lambda: int(get_memory_info_reply(state).store_stats.object_store_bytes_used)


def _workers(pid: int) -> list[int]:
    """Returns the ids of the process and its descendants, without Ray's daemons."""
    parents = {int(entry.name): _parent(entry) for entry in PROCESSES.iterdir() if entry.name.isdigit()}
    pids = {pid}
    for _ in range(4):  # Ray's workers are grandchildren
        pids |= {child for child, parent in parents.items() if parent in pids}
    return [pid, *(child for child in pids - {pid} if not any(name in _command(child) for name in DAEMONS))]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # the process has ended
        return 0


def _command(pid: int) -> str:
    try:
        return (PROCESSES / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return DAEMONS[0]


def _bytes(pid: int) -> int:
    """Returns the proportional set size of a process in bytes."""
    try:
        lines = (PROCESSES / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
