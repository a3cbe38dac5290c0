"""The Ray cluster: joining or starting one, what it can ever hold, and what went wrong on it."""

import logging
import os
import secrets
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.state import state as ray_state
from ray.exceptions import RayError

from segray.capacity import Node
from segray.errors import CapacityError, SegrayError
from segray.quiet import quieten

HEAD = "node:__internal_head__"  # the resource by which Ray marks the head node
MARKET_LABEL = "ray.io/market-type"
MOST_NODES = 1000


def connect(log_to_driver: bool = True) -> None:
    """Joins the cluster of RAY_ADDRESS (as in a submitted job), or starts a private one on this machine.

    Args:
        log_to_driver: whether what its processes print is shown here.

    Raises:
        CapacityError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    quieten()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports wait for its poll; its default is 2 s
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _init(address=address, log_to_driver=log_to_driver)
            _anchor()
        else:
            _lock()
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
            _init(address="local", num_cpus=available_cpus(), log_to_driver=log_to_driver)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise CapacityError(
            f"the Ray cluster at {address or 'this machine'} cannot be used: {error}; unset RAY_ADDRESS to start one."
        ) from error


def _init(**settings: Any) -> None:
    """Starts Ray, which takes SIGTERM for itself and would end the process before anything is put away."""
    ours = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **settings)
    if ours is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


def _anchor() -> None:
    """Has Ray Data's own actors start here, if nodes may go again.

    They live as long as the cluster, on the node of whoever streams first; that would be a worker's, and a node with
    an actor on it is never idle: the autoscaler would not end it for as long as the cluster lasts.
    """
    if startable():
        from ray.data._internal import stats  # noqa: PLC0415 two seconds, which others need not wait for
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator  # noqa: PLC0415

        stats.get_or_create_stats_actor()
        coordinator.get_or_create_autoscaling_coordinator()


def _lock() -> None:
    """Gives the private cluster a token of its own: other users of the machine cannot join, no file is left.

    Ray turns token mode on by itself where RAY_AUTH_MODE is unset, and takes this token. (Setting the mode here
    comes too late: Ray read it when it was imported.)
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def auth_mode() -> str:
    """Returns how this process proves who it is to the cluster: "token", or "disabled"."""
    return "token" if is_token_auth_enabled() else "disabled"


def available_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Member:
    """A node that is alive.

    Attributes:
        id: Ray's.
        address: by which others reach it.
        offers: its CPUs and GPUs.
        store: bytes of its object store.
        is_head: whether the cluster is led from there.
        is_here: whether this process runs there.
    """

    id: str
    address: str
    offers: Node
    store: int
    is_head: bool
    is_here: bool

    def __str__(self) -> str:
        return f"{self.address} ({'head, ' if self.is_head else ''}{self.id[:8]})"


def members() -> list[Member]:
    """Returns the nodes that are alive, the one of this process first."""
    own = ray.get_runtime_context().get_node_id()
    found = [_member(node, own) for node in ray.nodes() if node["Alive"]]
    return sorted(found, key=lambda one: not one.is_here)


def _member(node: dict[str, Any], own: str) -> Member:
    resources, address = node["Resources"], node["NodeManagerAddress"]
    store = int(resources.get("object_store_memory", 0))
    return Member(node["NodeID"], address, _node(resources), store, HEAD in resources, node["NodeID"] == own)


def nodes() -> list[Node]:
    """Returns the nodes the cluster can grow to: those alive, or its head and all the autoscaler may start."""
    alive, started = members(), startable()
    return [*(one.offers for one in alive if one.is_head or not started), *started]


def startable() -> list[Node]:
    """Returns the nodes that the cluster's autoscaler may start at most, those among them that are alive too."""
    config = ray_state.get_cluster_config()
    groups = [] if config is None else [group for group in config.node_group_configs if group.max_count > 0]
    # An autoscaler without a limit says so with a huge count.
    return [_node(dict(group.resources)) for group in groups for _ in range(min(group.max_count, MOST_NODES))]


def spans_machines() -> bool:
    """Returns whether the cluster has nodes on several machines, or may come to have."""
    return len({one.address for one in members()}) > 1 or bool(startable())


def _node(resources: dict[str, float]) -> Node:
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def is_preemptible() -> bool:
    """Returns whether the node of this process bears the label of those that may be taken away."""
    own = ray.get_runtime_context().get_node_id()
    labels: list[dict[str, str]] = [node["Labels"] for node in ray.nodes() if node["NodeID"] == own]
    return any(found.get(MARKET_LABEL) == "spot" for found in labels)


def cause(error: BaseException) -> SegrayError | None:
    """Returns the segray error that lies at the bottom of an error Ray raised, if there is one."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, SegrayError):
            return _plain(found)
        if id(found) not in seen:
            seen.add(id(found))
            failures = getattr(found, "worker_failures", {})
            inner = [getattr(found, "cause", None), found.__cause__, found.__context__, *failures.values()]
            waiting += [one for one in inner if isinstance(one, BaseException)]
    return None


def in_a_line(error: BaseException) -> str:
    """Returns why something failed in one line: a worker's own error, where workers raised any."""
    failures = [*getattr(error.__cause__, "worker_failures", {}).values()]
    told = failures[0] if failures else getattr(error, "cause", None) or error  # Ray dresses a task's error in its own
    lines = str(told).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _plain(error: SegrayError) -> SegrayError:
    """Returns the error as it was raised: Ray dresses it in a class of its own with the remote traceback in it."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
