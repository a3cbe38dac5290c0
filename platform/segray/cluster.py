"""The Ray cluster: joining or starting one, what it can ever hold, and what went wrong on it."""

import logging
import os
import secrets

import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError

from segray.capacity import Node
from segray.errors import CapacityError, SegrayError
from segray.quiet import quieten

HEAD = "node:__internal_head__"  # the resource by which Ray marks the head node
MARKET_LABEL = "ray.io/market-type"
MOST_NODES = 1000


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (as in a submitted job), or starts a private one on this machine.

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
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            _lock()
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
            ray.init(address="local", num_cpus=available_cpus(), logging_level=logging.WARNING)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise CapacityError(
            f"the Ray cluster at {address or 'this machine'} cannot be used: {error}; unset RAY_ADDRESS to start one."
        ) from error


def _lock() -> None:
    """Gives the private cluster a token of its own: other users of the machine cannot join, no file is left.

    Ray turns token mode on by itself where RAY_AUTH_MODE is unset, and takes this token. (Setting the mode here
    comes too late: Ray read it when it was imported.)
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def available_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nodes() -> list[Node]:
    """Returns the nodes the cluster can grow to: those alive, or its head and all the autoscaler may start."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = ray_state.get_cluster_config()
    groups = [] if config is None else [group for group in config.node_group_configs if group.max_count > 0]
    if not groups:
        return [_node(resources) for resources in alive]
    heads = [resources for resources in alive if HEAD in resources]
    # An autoscaler without a limit says so with a huge count.
    started = [dict(group.resources) for group in groups for _ in range(min(group.max_count, MOST_NODES))]
    return [_node(resources) for resources in [*heads, *started]]


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
    lines = str(failures[0] if failures else error).strip().splitlines()
    return lines[-1 if failures else 0].strip() if lines else type(error).__name__


def _plain(error: SegrayError) -> SegrayError:
    """Returns the error as it was raised: Ray dresses it in a class of its own with the remote traceback in it."""
    original = getattr(error, "cause", None)
    return original if isinstance(original, SegrayError) else error
