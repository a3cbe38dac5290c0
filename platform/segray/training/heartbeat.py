"""The pulse of a run: every rank tells where it is and hears whether to stop; one that does not move is ended.

Ranks wait for each other in every step, so when one hangs, all stand still. The one that came least far is the cause.
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

BEATS_PER_TIMEOUT = 10  # a rank tells where it is so many times in the time that it may stand still
POLL_S = 5.0
BEAT_INTERVAL_S = 0.5  # and hears as often whether it is to stop: who stops a job may wait for three seconds
RANK_TIMEOUT_S = 10.0  # who told nothing for so long is not there
PATIENCE_S = 30.0  # with a cluster that does not answer
START_TIME_TOLERANCE_S = 1.0  # the clock that births are told by may be set


@dataclass(frozen=True)
class RankStatus:
    """Where a rank was when it last told.

    Attributes:
        rank: whose.
        world: ranks there are.
        pid, born: its process, and when that began, in seconds since the epoch: a number is given away again.
        node: id of the node that runs it.
        step: the 0-based step it is in.
        phase_index: phases of the step it has come to; ranks move alike.
        phase: what it does there.
        num_beats: all signs of life so far.
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
    """Remembers where every rank is. An actor."""

    def __init__(self) -> None:
        self._places: dict[int, RankStatus] = {}
        self._moved: dict[int, float] = {}
        self._controller: Any = None
        self._here: dict[int, tuple[int, float]] = {}
        self._stops = False
        self._wait_s: int | None = None

    def reset(self) -> None:
        """Forgets all: another run begins."""
        self._places, self._moved, self._controller = {}, {}, None
        self._here, self._stops = {}, False

    def set_controller(self, controller: Any) -> None:
        """Notes the actor that leads the run's workers."""
        self._controller = controller

    def controller(self) -> Any:
        """Returns the actor that leads the run's workers, none before it has begun."""
        return self._controller

    def stop(self, wait_s: int | None = None) -> bool:
        """Has the ranks stop, and returns whether there are any to do so.

        Args:
            wait_s: seconds until all of it is killed; none leaves them all they take.
        """
        self._stops, self._wait_s = True, wait_s
        return self.has_live_ranks()

    def stop_timeout_s(self) -> int | None:
        """Returns how long who stops may take."""
        return self._wait_s

    def has_live_ranks(self) -> bool:
        """Returns whether any rank is there."""
        return any(monotonic() - heard < RANK_TIMEOUT_S for _, heard in self._here.values())

    def ping(self, rank: int, pid: int) -> bool:
        """Notes that a rank is there, and returns whether it is to stop."""
        self._here[rank] = pid, monotonic()
        return self._stops

    def report(self, place: RankStatus) -> bool:
        """Notes where a rank is, and returns whether it is to stop."""
        before = self._places.get(place.rank)
        if before is None or (before.pid, before.num_beats) != (place.pid, place.num_beats):
            self._moved[place.rank] = monotonic()
        self._places[place.rank] = place
        for gone in [rank for rank in self._places if rank >= place.world]:  # there were more before
            del self._places[gone], self._moved[gone]
        return self.ping(place.rank, place.pid)

    def mark_idle(self, rank: int, pid: int) -> None:
        """Forgets where a rank is, which may stand still."""
        if rank in self._places and self._places[rank].pid == pid:
            del self._places[rank], self._moved[rank]

    def unregister(self, rank: int, pid: int) -> None:
        """Forgets a rank that has nothing left to do."""
        self.mark_idle(rank, pid)
        if self._here.get(rank, (None,))[0] == pid:
            del self._here[rank]

    def find_stalled(self, most_s: float) -> list[RankStatus]:
        """Returns the ranks that came least far, if one of them has not moved for longer, and forgets them all."""
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
    """Tells the pulse where this rank is, from a thread of its own, every so often.

    Args:
        pulse: the actor; none tells nobody.
        rank: this one.
        world: ranks there are.
        hang_s: seconds it may stand still.

    Attributes:
        stop_requested: whether the rank was told to stop.
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
        """Notes that the rank begins a 0-based step."""
        self._step, self._moves = step, 0

    def __call__(self, phase: str) -> None:
        """Notes that the rank comes to another phase of its step, as all ranks do."""
        self._phase, self._moves = phase, self._moves + 1
        self.beat()

    def beat(self) -> None:
        """Notes that the rank is at work."""
        self._signs += 1

    def mark_idle(self) -> None:
        """Notes that the rank has made its steps and may stand still."""
        self._rests = True
        if self._pulse is not None:
            self._pulse.mark_idle.remote(self._rank, os.getpid())

    def stop(self) -> None:
        """Tells nothing any more, and is missed by nobody."""
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
            with suppress(RayError):  # the run is going down; its own error says more
                told = self._pulse.ping.remote(self._rank, me.pid) if self._rests else self._pulse.report.remote(place)
                self.stop_requested = ray.get(told)
            self._stopped.wait(every)


class HangWatchdog(threading.Thread):
    """Ends the ranks that hang, so that the run goes on from its last checkpoint.

    Args:
        pulse: the actor that the ranks tell.
        hang_s: seconds a rank may stand still.
        say: called with a line about each that is ended.
    """

    def __init__(self, pulse: Any, hang_s: float, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="segray-watch")
        self._pulse, self._hang_s, self._say = pulse, hang_s, say
        self._stopped = threading.Event()

    def run(self) -> None:
        """Watches until stopped."""
        while not self._stopped.wait(min(POLL_S, self._hang_s / BEATS_PER_TIMEOUT)):
            with suppress(RayError):  # the cluster is going down; the run's own error says more
                for place in ray.get(self._pulse.find_stalled.remote(self._hang_s), timeout=PATIENCE_S):
                    self._look_at(place)

    def _look_at(self, place: RankStatus) -> None:
        with suppress(RayError, OSError):  # its node is gone, and it with that; or the disk is full
            if _ended(place):
                self._say(f"{place} has not moved for {self._hang_s:g} s and was ended.")

    def stop(self) -> None:
        """Stops watching."""
        self._stopped.set()


def _ended(place: RankStatus) -> bool:
    """Kills a rank's process, from its own node: a process that hangs would not heed a request.

    Returns whether it was still there; that of a rank whose workers were replaced is not.
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
