"""Probe actors, one per node, that are queried concurrently."""

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

ANSWER_TIMEOUT_S = 12.0  # for all nodes together
RENDEZVOUS_TIMEOUT_S = 20.0  # import of torch, and ten seconds for the rendezvous
ROUNDS = 3


@dataclass(frozen=True)
class ProbeAnswers:
    """Answers of nodes.

    Attributes:
        replies: answers by node.
        failures: reasons for missing answers, by node.
    """

    replies: dict[NodeInfo, Any]
    failures: dict[NodeInfo, str]


@dataclass(frozen=True)
class PendingAnswers:
    """Pending requests to nodes.

    Attributes:
        references: object references of the answers, by node.
    """

    references: dict[NodeInfo, ray.ObjectRef]

    def wait(self, patience_s: float = ANSWER_TIMEOUT_S, together: bool = False) -> ProbeAnswers:
        """Waits for the answers until a timeout and returns those received.

        Args:
            patience_s: timeout in seconds for all nodes together.
            together: whether the nodes depend on each other. If so, the first failure ends the wait, and only that
                failure is returned.
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
    """Probe actors of several nodes.

    Args:
        members: nodes to probe.
        gpus: number of GPUs that each actor reserves.
    """

    def __init__(self, members: Sequence[NodeInfo], gpus: int) -> None:
        self._actors = {one: _examiner(one, gpus) for one in members}

    def submit(self, method: str, *arguments: Any) -> PendingAnswers:
        """Calls a method of all actors with the same arguments."""
        return PendingAnswers({one: getattr(actor, method).remote(*arguments) for one, actor in self._actors.items()})

    def clock_offsets_s(self, of: Sequence[NodeInfo]) -> dict[NodeInfo, float]:
        """Returns the offset in seconds of each node's clock from the local clock: a lower bound, positive if ahead."""
        return {one: _ahead_s(self._actors[one]) for one in of}

    def time_all_reduce(self, members: Sequence[NodeInfo], backend: str, count: int) -> ProbeAnswers:
        """Returns the duration in seconds of an all-reduce of `count` float32 values over some nodes."""
        first = members[0]
        warm = PendingAnswers({one: self._actors[one].import_torch.remote() for one in members}).wait(
            RENDEZVOUS_TIMEOUT_S
        )
        if warm.failures:  # the other nodes would wait for the failed one
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
        """Kills all actors."""
        for actor in self._actors.values():
            ray.kill(actor)


@contextmanager
def node_probes(members: Sequence[NodeInfo], gpus: int = 0) -> Iterator[NodeProbes]:
    """Yields a probe actor on each node and kills the actors on exit.

    Args:
        members: nodes to probe.
        gpus: number of GPUs that each actor reserves.
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
    """Returns the part of the clock difference that the round trip cannot explain, the minimum of several rounds."""
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
    """This process cannot write to the results folder."""


@dataclass(frozen=True)
class ProbeResults:
    """Reports of the probed nodes.

    Attributes:
        members: probed nodes.
        answers: reports and failures.
        data: root of the probed dataset, or None if the dataset was not probed.
    """

    members: Sequence[NodeInfo]
    answers: ProbeAnswers
    data: str | None

    @property
    def reports(self) -> dict[str, NodeReport]:
        """Reports by node name."""
        return by_node_name(self.answers.replies)


class PendingProbes:
    """Probes that run in the background.

    Attributes:
        crew: probe actors of the nodes.
    """

    def __init__(self, members: Sequence[NodeInfo], found: NodeProbes, question: ProbeRequest) -> None:
        self.crew = found
        self._members, self._data = members, question.root
        self._asked: PendingAnswers = found.submit("report", question)

    def wait(self) -> ProbeResults:
        """Waits for the reports and returns them. Nodes that left the cluster meanwhile are ignored."""
        answers = self._asked.wait()
        there = {one.id for one in list_nodes()} if answers.failures else set()
        silent = {one: why for one, why in answers.failures.items() if one.id in there}
        return ProbeResults([*answers.replies, *silent], ProbeAnswers(answers.replies, silent), self._data)


@contextmanager
def probing_nodes(config: Config, manifest: Manifest | None, members: Sequence[NodeInfo]) -> Iterator[PendingProbes]:
    """Starts probes of the results folder and the dataset on several nodes.

    Args:
        config: settings of the run.
        manifest: manifest of the dataset. With None, the dataset is not probed.
        members: nodes to probe.

    Raises:
        ResultsNotWritableError: this process cannot write to the results folder.
    """
    root, digest = (config.data.root, manifest.digest) if manifest else (None, None)
    with _marked(config.results) as mark, node_probes(members) as found:
        yield PendingProbes(members, found, ProbeRequest(config.results, mark, root, digest))


@contextmanager
def _marked(results: str) -> Iterator[str]:
    """Creates a marker file in the results folder, and removes it on exit, together with folders created for it."""
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
        with suppress(OSError):  # a run has started in the folder meanwhile, or the storage is gone
            mark.unlink(missing_ok=True)
            for one in made:
                one.rmdir()


def by_node_name(by_member: Mapping[NodeInfo, Any]) -> dict[str, Any]:
    """Returns the mapping with node names as keys."""
    return {str(one): value for one, value in by_member.items()}


def check_nodes(config: Config, told: ProbeResults, silent: Severity = Severity.FAIL) -> list[CheckResult]:
    """Returns the results of the checks that every run must pass.

    Args:
        config: settings of the run.
        told: reports of the nodes.
        silent: severity of a node that does not respond.
    """
    answered = checks.check_responses(by_node_name(told.answers.failures), len(told.members), silent)
    if not told.answers.replies:  # there is no report to check
        return [answered]
    found = [
        answered,
        checks.check_versions(node_probe.probe_versions(), told.reports),
        checks.check_storage(config.results, told.reports),
    ]
    return [*found, checks.check_dataset(strip_credentials(told.data), told.reports)] if told.data else found


def not_writable_result(error: ResultsNotWritableError) -> CheckResult:
    """Returns the failed check for a results folder to which this process cannot write."""
    return CheckResult("results", Severity.FAIL, str(error), "name another place with --results")
