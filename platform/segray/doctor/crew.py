"""An examiner on each node of a cluster, asked all at once."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray import cluster
from segray.cluster import Member
from segray.doctor.node import Examiner

PATIENCE_S = 12.0  # with all of them together
MEET_S = 20.0  # torch is imported, and they wait ten seconds for each other
ROUNDS = 3


@dataclass(frozen=True)
class Answers:
    """What nodes said.

    Attributes:
        said: by the node that did.
        silent: why the others did not.
    """

    said: dict[Member, Any]
    silent: dict[Member, str]


@dataclass(frozen=True)
class Asked:
    """What nodes were asked.

    Attributes:
        answers_to_come: by node.
    """

    answers_to_come: dict[Member, ray.ObjectRef]

    def answers(self, patience_s: float = PATIENCE_S, together: bool = False) -> Answers:
        """Waits for some seconds, and returns what they said by then.

        Args:
            patience_s: with all of them.
            together: whether they wait for each other; then who fails is told alone, and no more waited for the others.
        """
        said: dict[Member, Any] = {}
        failed: dict[Member, str] = {}
        until = time.monotonic() + patience_s
        asked = {reference: one for one, reference in self.answers_to_come.items()}
        late = list(asked)
        while late and not (together and failed):
            done, late = ray.wait(late, timeout=max(0.0, until - time.monotonic()))
            if not done:
                break
            try:
                said[asked[done[0]]] = ray.get(done[0])
            except RayError as error:
                failed[asked[done[0]]] = cluster.in_a_line(error)
        if together and failed:
            return Answers(said, failed)
        return Answers(said, failed | {asked[one]: f"no answer in {patience_s:g} s" for one in late})


class Crew:
    """The examiners of some nodes."""

    def __init__(self, members: Sequence[Member], gpus: int) -> None:
        self._actors = {one: _examiner(one, gpus) for one in members}

    def asked(self, method: str, *arguments: Any) -> Asked:
        """Asks each the same."""
        return Asked({one: getattr(actor, method).remote(*arguments) for one, actor in self._actors.items()})

    def ahead_s(self, of: Sequence[Member]) -> dict[Member, float]:
        """Returns by how many seconds clocks are ahead of ours: no less than that, whatever the way there took."""
        return {one: _ahead_s(self._actors[one]) for one in of}

    def reduce(self, members: Sequence[Member], backend: str, count: int) -> Answers:
        """Returns the seconds that a sum of `count` float32 over some of them takes."""
        first = members[0]
        warm = Asked({one: self._actors[one].warm.remote() for one in members}).answers(MEET_S)
        if warm.silent:  # the others would wait for it
            return warm
        try:
            port = ray.get(self._actors[first].port.remote(), timeout=PATIENCE_S)
        except RayError as error:
            return Answers({}, {first: cluster.in_a_line(error)})
        host = f"[{first.address}]" if ":" in first.address else first.address
        where = f"tcp://{host}:{port}"
        return Asked(
            {
                one: self._actors[one].reduce.remote(backend, where, rank, len(members), count)
                for rank, one in enumerate(members)
            }
        ).answers(MEET_S, together=True)

    def leave(self) -> None:
        """Sends them home."""
        for actor in self._actors.values():
            ray.kill(actor)


@contextmanager
def crew(members: Sequence[Member], gpus: int = 0) -> Iterator[Crew]:
    """Returns an examiner on each of some nodes, gone behind this.

    Args:
        members: the nodes.
        gpus: that each reserves.
    """
    found = Crew(members, gpus)
    try:
        yield found
    finally:
        found.leave()


def _examiner(member: Member, gpus: int) -> ray.actor.ActorHandle:
    there = NodeAffinitySchedulingStrategy(member.id, soft=False)
    return ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy=there)(Examiner).remote()


def _ahead_s(actor: ray.actor.ActorHandle) -> float:
    """Returns what of the difference of the clocks the time of the way cannot explain, the least of a few."""
    found = [0.0]
    with suppress(RayError):
        rounds = [_asked(actor) for _ in range(ROUNDS)]
        found = [min(there - before, 0.0) or max(there - after, 0.0) for before, there, after in rounds]
    return min(found, key=abs)


def _asked(actor: ray.actor.ActorHandle) -> tuple[float, float, float]:
    before = time.time()
    there = ray.get(actor.clock.remote(), timeout=PATIENCE_S)
    return before, there, time.time()
