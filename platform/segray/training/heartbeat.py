"""Heartbeats of a run: ranks report their progress and receive stop requests.

A rank without progress for `train.hang_timeout_s` is killed. Ranks wait for each other in every step, so one hanging
rank stalls all. The rank with the least progress is the cause.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.training.shutdown import StopSignal

BEATS_PER_TIMEOUT = 10  # reports of a rank within its hang timeout
SILENCE_POLL_S = 0.2
POLL_S = 5.0
BEAT_INTERVAL_S = 0.5  # also limits the delay of a stop request; `ray job stop` may allow only three seconds
RANK_TIMEOUT_S = 10.0  # a rank without a heartbeat for this time counts as gone
RAY_TIMEOUT_S = 30.0  # timeout for a cluster that does not respond
START_TIME_TOLERANCE_S = 1.0  # the system clock may be adjusted


@dataclass(frozen=True)
class RankStatus:
    """Last reported status of a rank.

    Attributes:
        rank: number of the rank.
        world: number of ranks.
        pid, start_time: process id, and start time of the process in seconds since the epoch. The start time is
            required because the system reuses process ids.
        node: id of the node that runs the process.
        step: current 0-based step.
        phase_index: number of phases reached in the step; all ranks pass the same phases.
        phase: name of the current phase.
        num_beats: total number of progress signals so far.
    """

    rank: int
    world: int
    pid: int
    start_time: float
    node: str
    step: int
    phase_index: int
    phase: str
    num_beats: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (process {self.pid} on node {self.node[:8]}, step {self.step + 1}, phase {self.phase})"
        )


class HeartbeatMonitor(StopSignal):
    """Actor of a run that stores the status of every rank.

    The reply to each heartbeat contains the stop request, so that a rank needs one call for both.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Clears the stored status and the stop request before another run."""
        super().__init__()
        self._statuses: dict[int, RankStatus] = {}
        self._processes: dict[int, RankStatus] = {}
        self._last_progress: dict[int, float] = {}
        self._last_beat: dict[int, tuple[int, float]] = {}
        self._controller: Any = None
        self._placement_group: Any = None

    def set_controller(self, controller: Any) -> None:
        """Stores the controller actor of the run."""
        self._controller = controller

    def controller(self) -> Any:
        """Returns the controller actor of the run; `None` before it has started."""
        return self._controller

    def set_placement_group(self, group: Any) -> None:
        """Stores the placement group of the workers."""
        self._placement_group = group

    def placement_group(self) -> Any:
        """Returns the placement group of the workers; `None` before they have started."""
        return self._placement_group

    def processes(self) -> list[RankStatus]:
        """Returns the last status of each rank whose process has not ended, also of idle ranks."""
        return list(self._processes.values())

    def has_live_ranks(self) -> bool:
        """Returns `True` if any rank sent a heartbeat within `RANK_TIMEOUT_S`."""
        return any(monotonic() - time < RANK_TIMEOUT_S for _, time in self._last_beat.values())

    def ping(self, rank: int, pid: int) -> bool:
        """Records that a rank is alive. Returns `True` if the rank must stop."""
        self._last_beat[rank] = pid, monotonic()
        return self.is_stop_requested()

    def report(self, status: RankStatus) -> bool:
        """Records the status of a rank. Returns `True` if the rank must stop."""
        previous = self._statuses.get(status.rank)
        if previous is None or (previous.pid, previous.num_beats) != (status.pid, status.num_beats):
            self._last_progress[status.rank] = monotonic()
        self._statuses[status.rank] = self._processes[status.rank] = status
        for rank in [rank for rank in self._statuses if rank >= status.world]:  # ranks of an earlier, larger group
            self._clear_progress(rank)
            self._processes.pop(rank, None)
        return self.ping(status.rank, status.pid)

    def mark_idle(self, rank: int, pid: int) -> None:
        """Removes the progress of a rank, so that the rank may pause without counting as stalled."""
        if rank in self._statuses and self._statuses[rank].pid == pid:
            self._clear_progress(rank)

    def unregister(self, rank: int, pid: int) -> None:
        """Removes a rank that has finished."""
        self.mark_idle(rank, pid)
        if self._last_beat.get(rank, (None,))[0] == pid:
            del self._last_beat[rank]
            self._processes.pop(rank, None)

    def find_stalled(self, timeout_s: float) -> list[RankStatus]:
        """Returns the ranks with the least progress if at least one of them is stalled, else an empty list.

        A rank is stalled if it has made no progress for `timeout_s` seconds. If ranks are returned, the stored status
        of all ranks is cleared.
        """
        if not self._statuses:
            return []
        least = min((status.step, status.phase_index) for status in self._statuses.values())
        slowest = [status for status in self._statuses.values() if (status.step, status.phase_index) == least]
        now = monotonic()
        if all(now - self._last_progress[status.rank] < timeout_s for status in slowest):
            return []
        self._statuses, self._last_progress = {}, {}
        return slowest

    def _clear_progress(self, rank: int) -> None:
        del self._statuses[rank], self._last_progress[rank]


def create_local_actor(actor_class: type) -> ray.actor.ActorHandle:
    """Returns a new actor on this node, which ends together with this process."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=this_node)(actor_class).remote()


class HeartbeatSender:
    """Reports the status of this rank to the heartbeat monitor periodically from a background thread.

    Args:
        monitor: `HeartbeatMonitor` actor; `None` disables reports.
        rank: number of this rank.
        world: number of ranks.
        hang_timeout_s: seconds without progress after which the rank counts as hanging.

    Attributes:
        stop_requested: `True` if the monitor requested a stop.
        phase: name of the current phase.
    """

    def __init__(self, monitor: Any, rank: int, world: int, hang_timeout_s: float) -> None:
        self.stop_requested = False
        self._monitor, self._rank, self._world = monitor, rank, world
        self.phase = "start"
        self._step, self._phase_index, self._num_beats = 0, 0, 0
        self._node = ray.get_runtime_context().get_node_id()
        self._is_idle, self._stopped = False, threading.Event()
        if monitor is not None:
            interval_s = min(BEAT_INTERVAL_S, hang_timeout_s / BEATS_PER_TIMEOUT)
            threading.Thread(
                target=self._send_reports, args=(interval_s,), daemon=True, name="segray-heartbeat"
            ).start()

    def step(self, step: int) -> None:
        """Records the start of a 0-based step."""
        self._step, self._phase_index = step, 0

    def __call__(self, phase: str) -> None:
        """Records the start of a phase of the step. All ranks pass the same phases."""
        self.phase, self._phase_index = phase, self._phase_index + 1
        self.beat()

    def beat(self) -> None:
        """Records a progress signal."""
        self._num_beats += 1

    def mark_idle(self) -> None:
        """Records that the rank has finished its steps and may pause without counting as stalled."""
        self._is_idle = True
        if self._monitor is not None:
            self._monitor.mark_idle.remote(self._rank, os.getpid())

    def stop(self) -> None:
        """Stops the reports and unregisters the rank."""
        self._stopped.set()
        if self._monitor is not None:
            self._monitor.unregister.remote(self._rank, os.getpid())

    def _send_reports(self, interval_s: float) -> None:
        process = psutil.Process()
        pid, start_time = process.pid, process.create_time()
        while not self._stopped.is_set():
            with suppress(RayError):  # the run is shutting down; its own error is more informative
                if self._is_idle:
                    reply = self._monitor.ping.remote(self._rank, pid)
                else:
                    reply = self._monitor.report.remote(self._status(pid, start_time))
                self.stop_requested = ray.get(reply)
            self._stopped.wait(interval_s)

    def _status(self, pid: int, start_time: float) -> RankStatus:
        return RankStatus(
            rank=self._rank,
            world=self._world,
            pid=pid,
            start_time=start_time,
            node=self._node,
            step=self._step,
            phase_index=self._phase_index,
            phase=self.phase,
            num_beats=self._num_beats,
        )


class HangWatchdog(threading.Thread):
    """Thread that terminates hanging ranks, so that the run resumes from its last checkpoint.

    Args:
        monitor: `HeartbeatMonitor` actor.
        hang_timeout_s: seconds without progress after which a rank counts as hanging.
        log: callback that receives a line about each terminated rank.
    """

    def __init__(self, monitor: Any, hang_timeout_s: float, log: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="segray-hang-watchdog")
        self._monitor, self._hang_timeout_s, self._log = monitor, hang_timeout_s, log
        self._stopped = threading.Event()

    def run(self) -> None:
        """Checks for stalled ranks until `stop` is called."""
        while not self._stopped.wait(min(POLL_S, self._hang_timeout_s / BEATS_PER_TIMEOUT)):
            with suppress(RayError):  # the cluster is shutting down; the error of the run is more informative
                for status in ray.get(self._monitor.find_stalled.remote(self._hang_timeout_s), timeout=RAY_TIMEOUT_S):
                    self._terminate(status)

    def _terminate(self, status: RankStatus) -> None:
        with suppress(RayError, OSError):  # the node is gone together with the rank, or the disk is full
            if _kill_rank(status):
                self._log(f"{status} made no progress for {self._hang_timeout_s:g} s and was killed.")

    def stop(self) -> None:
        """Stops the checks."""
        self._stopped.set()


def kill_ranks(monitor: Any) -> None:
    """Kills the ranks of a lost controller and waits until they are silent, so that no two groups train the same run.

    Ray ends the workers of a dead controller as well, but at an unspecified time.
    """
    for status in ray.get(monitor.processes.remote(), timeout=RAY_TIMEOUT_S):
        with suppress(RayError):  # the node is lost together with the rank
            _kill_rank(status)
    deadline = monotonic() + RAY_TIMEOUT_S
    while ray.get(monitor.has_live_ranks.remote(), timeout=RAY_TIMEOUT_S) and monotonic() < deadline:
        sleep(SILENCE_POLL_S)


def _kill_rank(status: RankStatus) -> bool:
    """Kills the process of a rank from its own node, because a hanging process ignores requests.

    Returns:
        `True` if the process still existed. The process of a replaced worker no longer exists.
    """
    node = NodeAffinitySchedulingStrategy(status.node, soft=False)
    kill = ray.remote(num_cpus=0, scheduling_strategy=node)(_kill_process)
    return bool(ray.get(kill.remote(status.pid, status.start_time), timeout=RAY_TIMEOUT_S))


def _kill_process(pid: int, start_time: float) -> bool:
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - start_time) > START_TIME_TOLERANCE_S:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
