"""An examiner on each node of a cluster, asked all at once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.cluster.doctor import checks, node_probe
from segray.cluster.doctor.node_probe import NodeProbe, NodeReport, ProbeRequest, path_exists
from segray.cluster.doctor.results import CheckResult, Severity
from segray.cluster.exceptions import one_line
from segray.cluster.nodes import NodeInfo, list_nodes
from segray.config import Config
from segray.data.manifest import Manifest
from segray.data.storage import strip_credentials

ANSWER_TIMEOUT_S = 12.0  # with all of them together
RENDEZVOUS_TIMEOUT_S = 20.0  # torch is imported, and they wait ten seconds for each other
ROUNDS = 3


@dataclass(frozen=True)
class ProbeAnswers:
    """What nodes said.

    Attributes:
        replies: by the node that did.
        failures: why the others did not.
    """

    replies: dict[NodeInfo, Any]
    failures: dict[NodeInfo, str]


@dataclass(frozen=True)
class PendingAnswers:
    """What nodes were asked.

    Attributes:
        references: by node.
    """

    references: dict[NodeInfo, ray.ObjectRef]

    def wait(self, patience_s: float = ANSWER_TIMEOUT_S, together: bool = False) -> ProbeAnswers:
        """Waits for some seconds, and returns what they said by then.

        Args:
            patience_s: with all of them.
            together: whether they wait for each other; then who fails is told alone, and no more waited for the others.
        """
        said: dict[NodeInfo, Any] = {}
        failed: dict[NodeInfo, str] = {}
        until = time.monotonic() + patience_s
        asked = {reference: one for one, reference in self.references.items()}
        late = list(asked)
        while late and not (together and failed):
            done, late = ray.wait(late, timeout=max(0.0, until - time.monotonic()))
            if not done:
                break
            try:
                said[asked[done[0]]] = ray.get(done[0])
            except RayError as error:
                failed[asked[done[0]]] = one_line(error)
        if together and failed:
            return ProbeAnswers(said, failed)
        return ProbeAnswers(said, failed | {asked[one]: f"no answer in {patience_s:g} s" for one in late})


class NodeProbes:
    """The examiners of some nodes."""

    def __init__(self, members: Sequence[NodeInfo], gpus: int) -> None:
        self._actors = {one: _examiner(one, gpus) for one in members}

    def submit(self, method: str, *arguments: Any) -> PendingAnswers:
        """Asks each the same."""
        return PendingAnswers({one: getattr(actor, method).remote(*arguments) for one, actor in self._actors.items()})

    def clock_offsets_s(self, of: Sequence[NodeInfo]) -> dict[NodeInfo, float]:
        """Returns by how many seconds clocks are ahead of ours: no less than that, whatever the way there took."""
        return {one: _ahead_s(self._actors[one]) for one in of}

    def time_all_reduce(self, members: Sequence[NodeInfo], backend: str, count: int) -> ProbeAnswers:
        """Returns the seconds that a sum of `count` float32 over some of them takes."""
        first = members[0]
        warm = PendingAnswers({one: self._actors[one].import_torch.remote() for one in members}).wait(
            RENDEZVOUS_TIMEOUT_S
        )
        if warm.failures:  # the others would wait for it
            return warm
        try:
            port = ray.get(self._actors[first].free_port.remote(), timeout=ANSWER_TIMEOUT_S)
        except RayError as error:
            return ProbeAnswers({}, {first: one_line(error)})
        host = f"[{first.address}]" if ":" in first.address else first.address
        where = f"tcp://{host}:{port}"
        return PendingAnswers(
            {
                one: self._actors[one].time_all_reduce.remote(backend, where, rank, len(members), count)
                for rank, one in enumerate(members)
            }
        ).wait(RENDEZVOUS_TIMEOUT_S, together=True)

    def shutdown(self) -> None:
        """Sends them home."""
        for actor in self._actors.values():
            ray.kill(actor)


@contextmanager
def node_probes(members: Sequence[NodeInfo], gpus: int = 0) -> Iterator[NodeProbes]:
    """Returns an examiner on each of some nodes, gone behind this.

    Args:
        members: the nodes.
        gpus: that each reserves.
    """
    found = NodeProbes(members, gpus)
    try:
        yield found
    finally:
        found.shutdown()


def _examiner(member: NodeInfo, gpus: int) -> ray.actor.ActorHandle:
    there = NodeAffinitySchedulingStrategy(member.id, soft=False)
    return ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy=there)(NodeProbe).remote()


def _ahead_s(actor: ray.actor.ActorHandle) -> float:
    """Returns what of the difference of the clocks the time of the way cannot explain, the least of a few."""
    found = [0.0]
    with suppress(RayError):
        rounds = [_asked(actor) for _ in range(ROUNDS)]
        found = [min(there - before, 0.0) or max(there - after, 0.0) for before, there, after in rounds]
    return min(found, key=abs)


def _asked(actor: ray.actor.ActorHandle) -> tuple[float, float, float]:
    before = time.time()
    there = ray.get(actor.time_s.remote(), timeout=ANSWER_TIMEOUT_S)
    return before, there, time.time()


class ResultsNotWritableError(Exception):
    """The results' folder cannot be written to by this process itself."""


@dataclass(frozen=True)
class ProbeResults:
    """What nodes said.

    Attributes:
        members: that were asked.
        answers: their reports.
        data: root of the dataset they were asked for, none if they were not.
    """

    members: Sequence[NodeInfo]
    answers: ProbeAnswers
    data: str | None

    @property
    def reports(self) -> dict[str, NodeReport]:
        """Returns the reports, by the name of the node."""
        return by_node_name(self.answers.replies)


class PendingProbes:
    """Nodes that look, while who asks does something else.

    Attributes:
        crew: that looks.
    """

    def __init__(self, members: Sequence[NodeInfo], found: NodeProbes, question: ProbeRequest) -> None:
        self.crew = found
        self._members, self._data = members, question.root
        self._asked: PendingAnswers = found.submit("report", question)

    def wait(self) -> ProbeResults:
        """Waits for what they say, and returns it; nodes that are gone by then are asked for nothing."""
        answers = self._asked.wait()
        there = {one.id for one in list_nodes()} if answers.failures else set()
        silent = {one: why for one, why in answers.failures.items() if one.id in there}
        return ProbeResults([*answers.replies, *silent], ProbeAnswers(answers.replies, silent), self._data)


@contextmanager
def probing_nodes(config: Config, manifest: Manifest | None, members: Sequence[NodeInfo]) -> Iterator[PendingProbes]:
    """Has nodes look at what a Config names.

    Args:
        config: of the run.
        manifest: of its dataset; without it they are not asked for it.
        members: the nodes.

    Raises:
        UnwritableError: the results' folder cannot be written to from here.
    """
    root, digest = (config.data.root, manifest.digest) if manifest else (None, None)
    with _marked(config.results) as mark, node_probes(members) as found:
        yield PendingProbes(members, found, ProbeRequest(config.results, mark, root, digest))


@contextmanager
def _marked(results: str) -> Iterator[str]:
    """Leaves a file in the results' folder for others to see; it is gone behind this, and the folder if it is new."""
    folder = Path(results)
    made = [one for one in (folder, *folder.parents) if not path_exists(one)]
    mark = folder / f".doctor-{uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(mark.name)
    except OSError as error:
        raise ResultsNotWritableError(f"{results} cannot be written to ({error.strerror})") from error
    try:
        yield mark.name
    finally:
        with suppress(OSError):  # a run has begun there meanwhile, or the storage is gone
            mark.unlink(missing_ok=True)
            for one in made:
                one.rmdir()


def by_node_name(by_member: Mapping[NodeInfo, Any]) -> dict[str, Any]:
    """Returns what is known of nodes by their names."""
    return {str(one): value for one, value in by_member.items()}


def check_nodes(config: Config, told: ProbeResults, silent: Severity = Severity.FAIL) -> list[CheckResult]:
    """Returns what a run cannot work without.

    Args:
        config: of the run.
        told: what nodes said.
        silent: what it means that a node says nothing.
    """
    answered = checks.check_responses(by_node_name(told.answers.failures), len(told.members), silent)
    if not told.answers.replies:  # nobody said what could be judged
        return [answered]
    found = [
        answered,
        checks.check_versions(node_probe.probe_versions(), told.reports),
        checks.check_storage(config.results, told.reports),
    ]
    return [*found, checks.check_dataset(strip_credentials(told.data), told.reports)] if told.data else found


def not_writable_result(error: ResultsNotWritableError) -> CheckResult:
    """Returns what is wrong with a results' folder that this process itself cannot write to."""
    return CheckResult("results", Severity.FAIL, str(error), "name another place with --results")
