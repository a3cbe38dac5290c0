"""Heartbeats of a run: ranks report their progress and receive stop requests; hanging ranks are terminated.

Ranks wait for each other in every step, so one hanging rank stalls all. The rank with the least progress is the cause.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BEATS_PER_TIMEOUT = 10  # reports of a rank within its hang timeout
POLL_S = 5.0
BEAT_INTERVAL_S = 0.5  # also limits the delay of a stop request; `ray job stop` may allow only three seconds
RANK_TIMEOUT_S = 10.0  # a rank without a heartbeat for this time counts as gone
PATIENCE_S = 30.0  # timeout for a cluster that does not answer
START_TIME_TOLERANCE_S = 1.0  # the system clock may be adjusted


@dataclass(frozen=True)
class RankStatus:
    """Last reported status of a rank.

    Attributes:
        rank: number of the rank.
        world: number of ranks.
        pid, born: process id, and start time of the process in seconds since the epoch. The start time is required
            because the system reuses process ids.
        node: id of the node that runs the process.
        step: current 0-based step.
        phase_index: number of phases reached in the step; all ranks pass the same phases.
        phase: name of the current phase.
        num_beats: total number of progress signals so far.
    """

    rank: int
    world: int
    pid: int
    born: float
    node: str
    step: int
    phase_index: int
    phase: str
    num_beats: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on node {self.node[:8]}), at {self.phase} in step {self.step + 1}"


class HeartbeatMonitor:
    """Actor that stores the status of every rank."""

    def __init__(self) -> None:
        self._places: dict[int, RankStatus] = {}
        self._moved: dict[int, float] = {}
        self._controller: Any = None
        self._here: dict[int, tuple[int, float]] = {}
        self._stops = False
        self._wait_s: int | None = None

    def reset(self) -> None:
        """Clears the stored status before another run."""
        self._places, self._moved, self._controller = {}, {}, None
        self._here, self._stops = {}, False

    def set_controller(self, controller: Any) -> None:
        """Stores the controller actor of the run."""
        self._controller = controller

    def controller(self) -> Any:
        """Returns the controller actor of the run; `None` before it has started."""
        return self._controller

    def stop(self, wait_s: int | None = None) -> bool:
        """Requests that the ranks stop.

        Args:
            wait_s: seconds until the job is killed; `None` sets no limit.

        Returns:
            `True` if any rank is alive.
        """
        self._stops, self._wait_s = True, wait_s
        return self.has_live_ranks()

    def stop_timeout_s(self) -> int | None:
        """Returns the time limit of the stop request in seconds; `None` means no limit."""
        return self._wait_s

    def has_live_ranks(self) -> bool:
        """Returns `True` if any rank sent a heartbeat within `RANK_TIMEOUT_S`."""
        return any(monotonic() - heard < RANK_TIMEOUT_S for _, heard in self._here.values())

    def ping(self, rank: int, pid: int) -> bool:
        """Records that a rank is alive. Returns `True` if the rank must stop."""
        self._here[rank] = pid, monotonic()
        return self._stops

    def report(self, place: RankStatus) -> bool:
        """Records the status of a rank. Returns `True` if the rank must stop."""
        before = self._places.get(place.rank)
        if before is None or (before.pid, before.num_beats) != (place.pid, place.num_beats):
            self._moved[place.rank] = monotonic()
        self._places[place.rank] = place
        for gone in [rank for rank in self._places if rank >= place.world]:  # ranks of a larger worker group before
            del self._places[gone], self._moved[gone]
        return self.ping(place.rank, place.pid)

    def mark_idle(self, rank: int, pid: int) -> None:
        """Removes the progress of a rank, so that the rank may pause without counting as stalled."""
        if rank in self._places and self._places[rank].pid == pid:
            del self._places[rank], self._moved[rank]

    def unregister(self, rank: int, pid: int) -> None:
        """Removes a rank that has finished."""
        self.mark_idle(rank, pid)
        if self._here.get(rank, (None,))[0] == pid:
            del self._here[rank]

    def find_stalled(self, most_s: float) -> list[RankStatus]:
        """Returns the ranks with the least progress if at least one of them is stalled, else an empty list.

        A rank is stalled if it has made no progress for `most_s` seconds. If ranks are returned, the stored status of
        all ranks is cleared.
        """
        if not self._places:
            return []
        least = min((place.step, place.phase_index) for place in self._places.values())
        behind = [place for place in self._places.values() if (place.step, place.phase_index) == least]
        now = monotonic()
        if all(now - self._moved[place.rank] < most_s for place in behind):
            return []
        self._places, self._moved = {}, {}
        return behind


class HeartbeatSender:
    """Reports the status of this rank to the heartbeat monitor periodically from a background thread.

    Args:
        pulse: heartbeat monitor actor; `None` disables reports.
        rank: number of this rank.
        world: number of ranks.
        hang_s: seconds without progress after which the rank counts as hanging.

    Attributes:
        stop_requested: `True` if the monitor requested a stop.
    """

    def __init__(self, pulse: Any, rank: int, world: int, hang_s: float) -> None:
        self.stop_requested = False
        self._pulse, self._rank, self._world = pulse, rank, world
        self._step, self._moves, self._phase, self._signs = 0, 0, "the start", 0
        self._node = ray.get_runtime_context().get_node_id()
        self._rests, self._stopped = False, threading.Event()
        if pulse is not None:
            every = min(BEAT_INTERVAL_S, hang_s / BEATS_PER_TIMEOUT)
            threading.Thread(target=self._tell, args=(every,), daemon=True, name="segray-pulse").start()

    def step(self, step: int) -> None:
        """Records the start of a 0-based step."""
        self._step, self._moves = step, 0

    def __call__(self, phase: str) -> None:
        """Records the start of a phase of the step. All ranks pass the same phases."""
        self._phase, self._moves = phase, self._moves + 1
        self.beat()

    def beat(self) -> None:
        """Records a progress signal."""
        self._signs += 1

    def mark_idle(self) -> None:
        """Records that the rank has finished its steps and may pause without counting as stalled."""
        self._rests = True
        if self._pulse is not None:
            self._pulse.mark_idle.remote(self._rank, os.getpid())

    def stop(self) -> None:
        """Stops the reports and unregisters the rank."""
        self._stopped.set()
        if self._pulse is not None:
            self._pulse.unregister.remote(self._rank, os.getpid())

    def _tell(self, every: float) -> None:
        me = psutil.Process()
        while not self._stopped.is_set():
            place = RankStatus(
                self._rank,
                self._world,
                me.pid,
                me.create_time(),
                self._node,
                self._step,
                self._moves,
                self._phase,
                self._signs,
            )
            with suppress(RayError):  # the run is shutting down; its own error is more informative
                told = self._pulse.ping.remote(self._rank, me.pid) if self._rests else self._pulse.report.remote(place)
                self.stop_requested = ray.get(told)
            self._stopped.wait(every)


class HangWatchdog(threading.Thread):
    """Thread that terminates hanging ranks, so that the run resumes from its last checkpoint.

    Args:
        pulse: heartbeat monitor actor.
        hang_s: seconds without progress after which a rank counts as hanging.
        say: callback that receives a line about each terminated rank.
    """

    def __init__(self, pulse: Any, hang_s: float, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="segray-watch")
        self._pulse, self._hang_s, self._say = pulse, hang_s, say
        self._stopped = threading.Event()

    def run(self) -> None:
        """Checks for stalled ranks until `stop` is called."""
        while not self._stopped.wait(min(POLL_S, self._hang_s / BEATS_PER_TIMEOUT)):
            with suppress(RayError):  # the cluster is shutting down; the error of the run is more informative
                for place in ray.get(self._pulse.find_stalled.remote(self._hang_s), timeout=PATIENCE_S):
                    self._look_at(place)

    def _look_at(self, place: RankStatus) -> None:
        with suppress(RayError, OSError):  # the node is gone together with the rank, or the disk is full
            if _ended(place):
                self._say(f"{place} has not moved for {self._hang_s:g} s and was ended.")

    def stop(self) -> None:
        """Stops the checks."""
        self._stopped.set()


def _ended(place: RankStatus) -> bool:
    """Kills the process of a rank from its own node, because a hanging process ignores requests.

    Returns:
        `True` if the process still existed. The process of a replaced worker no longer exists.
    """
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    kill = ray.remote(num_cpus=0, scheduling_strategy=there)(_kill)
    return bool(ray.get(kill.remote(place.pid, place.born), timeout=PATIENCE_S))


def _kill(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - born) > START_TIME_TOLERANCE_S:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
