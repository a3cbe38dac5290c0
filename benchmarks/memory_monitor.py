"""The most memory that a process and those that work for it hold at once, and the most that Ray's object store does."""

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
    """The most bytes seen.

    Attributes:
        memory: of the process, its children and Ray's workers together; shared pages count once. Ray's daemons, which
            are there whatever is read, do not.
        store: used in the object store.
    """

    memory: int = 0
    store: int = 0


@contextmanager
def monitor_memory(pid: int) -> Iterator[PeakMemory]:
    """Looks at a process of this machine, again and again, until the block ends; the peak grows meanwhile."""
    peak, stopped, store = PeakMemory(), Event(), _store()

    def look() -> None:
        while not stopped.wait(POLL_S):
            peak.memory = max(peak.memory, sum(map(_bytes, _workers(pid))))
            peak.store = max(peak.store, store())

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def is_supported() -> bool:
    """Returns whether this system tells what processes hold; Linux does."""
    return (PROCESSES / "self" / "smaps_rollup").exists()


def _store() -> Callable[[], int]:
    if not ray.is_initialized():
        return lambda: 0
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return lambda: int(get_memory_info_reply(state).store_stats.object_store_bytes_used)


def _workers(pid: int) -> list[int]:
    """Returns the process and its descendants, but for Ray's daemons."""
    parents = {int(entry.name): _parent(entry) for entry in PROCESSES.iterdir() if entry.name.isdigit()}
    family = {pid}
    for _ in range(4):  # Ray's workers are grandchildren
        family |= {child for child, parent in parents.items() if parent in family}
    return [pid, *(one for one in family - {pid} if not any(name in _command(one) for name in DAEMONS))]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def _command(pid: int) -> str:
    try:
        return (PROCESSES / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return DAEMONS[0]


def _bytes(pid: int) -> int:
    """Returns a process's proportional share of the memory it maps."""
    try:
        lines = (PROCESSES / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
