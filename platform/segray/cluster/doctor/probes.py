"""Probes of the cluster: functions that run on every node at the same time, and a connection without a token."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.cluster.doctor import node_probe
from segray.cluster.doctor.node_probe import VISIBILITY_TIMEOUT_S, NodeReport
from segray.cluster.nodes import NodeInfo, list_nodes
from segray.config import Config
from segray.core.errors import cause_summary
from segray.data.manifest import Manifest

ANSWER_TIMEOUT_S = 12.0  # for all nodes together, including the start of their processes
RENDEZVOUS_TIMEOUT_S = 20.0  # import of torch, and ten seconds for the rendezvous
CLOCK_ROUNDS = 3

PING_WITHOUT_TOKEN = """
import sys
from ray.exceptions import AuthenticationError
from segray.cluster.ray_internals import ping_head
try:
    ping_head(sys.argv[1], 5)
except AuthenticationError:
    sys.exit(3)
"""
AUTH_EXIT_CODES = {0: False, 3: True}
AUTH_TIMEOUT_S = 10.0
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

T = TypeVar("T")


class NodeProbe:
    """Actor that runs functions on a node."""

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Returns the result of a function."""
        return function(*arguments)


@contextmanager
def node_probes(nodes: Sequence[NodeInfo], gpus: int = 0) -> Iterator[dict[NodeInfo, ActorHandle]]:
    """Yields an actor on each node and kills the actors on exit.

    Args:
        nodes: nodes to probe.
        gpus: number of GPUs that each actor reserves.
    """
    probes = {node: _start_probe(node, gpus) for node in nodes}
    try:
        yield probes
    finally:
        for probe in probes.values():
            ray.kill(probe)


def _start_probe(node: NodeInfo, gpus: int) -> ActorHandle:
    this_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy=this_node)(NodeProbe).remote()


def probe_nodes(
    probes: Mapping[NodeInfo, ActorHandle],
    function: Callable[..., T],
    *arguments: Any,
    timeout_s: float = ANSWER_TIMEOUT_S,
    fail_fast: bool = False,
) -> dict[NodeInfo, T | str]:
    """Runs a function on all nodes at the same time and returns its result, or the error message, for each node.

    Args:
        probes: actors of the nodes.
        function: importable function. It does not return a string.
        *arguments: arguments of the function.
        timeout_s: timeout in seconds for all nodes together.
        fail_fast: whether to return after the first error, without the nodes that have not answered yet. Use it for
            functions that wait for each other.
    """
    pending = {probe.run.remote(function, *arguments): node for node, probe in probes.items()}
    replies: dict[NodeInfo, T | str] = {}
    deadline = time.monotonic() + timeout_s
    while pending:
        ready, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return replies | dict.fromkeys(pending.values(), f"no answer in {timeout_s:g} s")
        node = pending.pop(ready[0])
        try:
            replies[node] = ray.get(ready[0])
        except RayError as error:
            replies[node] = cause_summary(error)
            if fail_fast:
                break
    return replies


def select_errors(replies: Mapping[NodeInfo, T | str]) -> dict[NodeInfo, str]:
    """Returns the error messages of the nodes that failed."""
    return {node: reply for node, reply in replies.items() if isinstance(reply, str)}


class ResultsNotWritableError(Exception):
    """This process cannot write to the results folder."""


def report_nodes(
    probes: Mapping[NodeInfo, ActorHandle], config: Config, manifest: Manifest | None
) -> dict[NodeInfo, NodeReport | str]:
    """Returns the report, or the error message, of each node that is still in the cluster.

    Args:
        probes: actors of the nodes.
        config: settings of the run.
        manifest: manifest of the dataset. With None, the nodes do not read the dataset.

    Raises:
        ResultsNotWritableError: this process cannot write to the results folder.
    """
    root, digest = (config.data.root, manifest.digest) if manifest else (None, None)
    with _marker_file(Path(config.results)) as marker:
        errors = select_errors(probe_nodes(probes, time.time))  # nodes on which no process starts do not delay the rest
        replies: dict[NodeInfo, NodeReport | str] = probe_nodes(
            {node: probe for node, probe in probes.items() if node not in errors},
            node_probe.report_node,
            *(config.results, marker, root, digest),
            timeout_s=VISIBILITY_TIMEOUT_S + ANSWER_TIMEOUT_S,
        )
    errors |= select_errors(replies)
    alive = {node.id for node in list_nodes()} if errors else set()
    return {node: reply for node, reply in (replies | errors).items() if node not in errors or node.id in alive}


@contextmanager
def _marker_file(results: Path) -> Iterator[str]:
    """Creates a marker file in the results folder, and removes it on exit, together with folders created for it."""
    new_folders = [folder for folder in (results, *results.parents) if not node_probe.path_exists(folder)]
    marker = results / f".doctor-{uuid4().hex[:12]}"
    try:
        results.mkdir(parents=True, exist_ok=True)
        marker.write_text(marker.name)
    except OSError as error:
        raise ResultsNotWritableError(f"{results} is not writable ({error.strerror})") from error
    try:
        yield marker.name
    finally:
        with suppress(OSError):  # a run has started in the folder meanwhile, or the storage is gone
            marker.unlink(missing_ok=True)
            for folder in new_folders:
                folder.rmdir()


def measure_clock_offset_s(probe: ActorHandle) -> float:
    """Returns the offset in seconds of a node's clock, positive if ahead: the part that no round trip explains."""
    offsets = [0.0]
    with suppress(RayError):
        rounds = [_exchange_times(probe) for _ in range(CLOCK_ROUNDS)]
        offsets = [min(remote - before, 0.0) or max(remote - after, 0.0) for before, remote, after in rounds]
    return min(offsets, key=abs)


def _exchange_times(probe: ActorHandle) -> tuple[float, float, float]:
    before = time.time()
    remote = ray.get(probe.run.remote(time.time), timeout=ANSWER_TIMEOUT_S)
    return before, remote, time.time()


def time_all_reduce(probes: Mapping[NodeInfo, ActorHandle], backend: str, count: int) -> dict[NodeInfo, float | str]:
    """Returns the duration in seconds of an all-reduce of `count` float32 values, or the error, for each node."""
    imports = probe_nodes(probes, node_probe.import_torch, timeout_s=RENDEZVOUS_TIMEOUT_S)
    if errors := select_errors(imports):  # the other nodes would wait for the failed one
        return {**errors}
    first = next(iter(probes))
    port = probe_nodes({first: probes[first]}, node_probe.find_free_port)[first]
    if isinstance(port, str):
        return {first: port}
    host = f"[{first.address}]" if ":" in first.address else first.address
    return probe_nodes(
        probes,
        node_probe.time_all_reduce,
        *(backend, f"tcp://{host}:{port}", [node.id for node in probes], count),
        timeout_s=RENDEZVOUS_TIMEOUT_S,
        fail_fast=True,
    )


def start_auth_probe() -> subprocess.Popen[bytes]:
    """Starts a process that connects to the cluster without a token. Local settings do not show if one is required."""
    environment = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-c", PING_WITHOUT_TOKEN, ray.get_runtime_context().gcs_address],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def requires_token(auth_probe: subprocess.Popen[bytes]) -> bool | None:
    """Waits for the process of `start_auth_probe`. Returns whether the cluster rejected it, or None if unknown."""
    try:
        return AUTH_EXIT_CODES.get(auth_probe.wait(AUTH_TIMEOUT_S))
    except subprocess.TimeoutExpired:
        auth_probe.kill()
        auth_probe.wait()
        return None
