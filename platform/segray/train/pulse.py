"""The pulse of a run: every rank tells where it is, and one that does not move is named and ended.

Ranks wait for each other in every step, so when one hangs, all stand still. The one that came least far is the cause.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SILENCE = 10  # a rank tells where it is so many times in the time that it may stand still
POLL_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where a rank was when it last told.

    Attributes:
        rank: whose.
        pid, node: its process, and the id of the node that runs it.
        step: the 0-based step it is in.
        moves: phases of the step it has come to; ranks move alike.
        phase: what it does there.
        signs: all signs of life so far.
    """

    rank: int
    pid: int
    node: str
    step: int
    moves: int
    phase: str
    signs: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on node {self.node[:8]}), at {self.phase} in step {self.step + 1}"


class Pulse:
    """Remembers where every rank is. An actor."""

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self._moved: dict[int, float] = {}

    def tell(self, place: Place) -> None:
        """Notes where a rank is."""
        before = self._places.get(place.rank)
        if before is None or (before.pid, before.signs) != (place.pid, place.signs):
            self._moved[place.rank] = monotonic()
        self._places[place.rank] = place

    def leave(self, rank: int, pid: int) -> None:
        """Forgets a rank that has nothing left to do."""
        if rank in self._places and self._places[rank].pid == pid:
            del self._places[rank], self._moved[rank]

    def stuck(self, most_s: float) -> list[Place]:
        """Returns the ranks that came least far, if one of them has not moved for longer, and forgets them all."""
        if not self._places:
            return []
        least = min((place.step, place.moves) for place in self._places.values())
        behind = [place for place in self._places.values() if (place.step, place.moves) == least]
        now = monotonic()
        if all(now - self._moved[place.rank] < most_s for place in behind):
            return []
        self._places, self._moved = {}, {}
        return behind


class Beat:
    """Tells the pulse where this rank is, from a thread of its own, every so often.

    Args:
        pulse: the actor; none tells nobody.
        rank: this one.
        hang_s: seconds it may stand still.
    """

    def __init__(self, pulse: Any, rank: int, hang_s: float) -> None:
        self._pulse, self._rank = pulse, rank
        self._step, self._moves, self._phase, self._signs = 0, 0, "the start", 0
        self._node = ray.get_runtime_context().get_node_id()
        self._stopped = threading.Event()
        if pulse is not None:
            every = min(POLL_S, hang_s / SILENCE)
            threading.Thread(target=self._tell, args=(every,), daemon=True, name="segray-pulse").start()

    def step(self, step: int) -> None:
        """Notes that the rank begins a 0-based step."""
        self._step, self._moves = step, 0

    def __call__(self, phase: str) -> None:
        """Notes that the rank comes to another phase of its step, as all ranks do."""
        self._phase, self._moves = phase, self._moves + 1
        self.sign()

    def sign(self) -> None:
        """Notes that the rank is at work."""
        self._signs += 1

    def stop(self) -> None:
        """Tells nothing any more, and is missed by nobody."""
        self._stopped.set()
        if self._pulse is not None:
            self._pulse.leave.remote(self._rank, os.getpid())

    def _tell(self, every: float) -> None:
        while not self._stopped.is_set():
            place = Place(self._rank, os.getpid(), self._node, self._step, self._moves, self._phase, self._signs)
            self._pulse.tell.remote(place)
            self._stopped.wait(every)


class Watch(threading.Thread):
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
        while not self._stopped.wait(min(POLL_S, self._hang_s / SILENCE)):
            try:
                for place in ray.get(self._pulse.stuck.remote(self._hang_s)):
                    self._say(f"{place} has not moved for {self._hang_s:g} s and is ended.")
                    _end(place)
            except RayError:  # the cluster is going down; the run's own error says more
                return

    def stop(self) -> None:
        """Stops watching."""
        self._stopped.set()


def _end(place: Place) -> None:
    """Kills a rank's process, from its own node: a process that hangs would not heed a request."""
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(_kill).remote(place.pid))


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
