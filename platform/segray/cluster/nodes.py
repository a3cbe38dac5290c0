"""The nodes of a cluster: those that are alive, and those that its autoscaler may start."""

from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state as ray_state

from segray.cluster.resources import NodeResources

HEAD = "node:__internal_head__"  # the resource by which Ray marks the head node
SPOT_LABEL = "ray.io/market-type"
MAX_NODES = 1000


@dataclass(frozen=True)
class NodeInfo:
    """A node that is alive.

    Attributes:
        id: Ray's.
        address: by which others reach it.
        resources: its CPUs and GPUs.
        object_store_bytes: bytes of its object store.
        is_head: whether the cluster is led from there.
        is_local: whether this process runs there.
    """

    id: str
    address: str
    resources: NodeResources
    object_store_bytes: int
    is_head: bool
    is_local: bool

    def __str__(self) -> str:
        return f"{self.address} ({'head, ' if self.is_head else ''}{self.id[:8]})"


def list_nodes() -> list[NodeInfo]:
    """Returns the nodes that are alive, the one of this process first."""
    own = ray.get_runtime_context().get_node_id()
    found = [_member(node, own) for node in ray.nodes() if node["Alive"]]
    return sorted(found, key=lambda one: not one.is_local)


def _member(node: dict[str, Any], own: str) -> NodeInfo:
    resources, address = node["Resources"], node["NodeManagerAddress"]
    store = int(resources.get("object_store_memory", 0))
    return NodeInfo(node["NodeID"], address, _node(resources), store, HEAD in resources, node["NodeID"] == own)


def potential_nodes() -> list[NodeResources]:
    """Returns the nodes the cluster can grow to: those alive, or its head and all the autoscaler may start."""
    alive, started = list_nodes(), autoscaler_nodes()
    return [*(one.resources for one in alive if one.is_head or not started), *started]


def autoscaler_nodes() -> list[NodeResources]:
    """Returns the nodes that the cluster's autoscaler may start at most, those among them that are alive too."""
    config = ray_state.get_cluster_config()
    groups = [] if config is None else [group for group in config.node_group_configs if group.max_count > 0]
    # An autoscaler without a limit says so with a huge count.
    return [_node(dict(group.resources)) for group in groups for _ in range(min(group.max_count, MAX_NODES))]


def is_multi_host() -> bool:
    """Returns whether the cluster has nodes on several machines, or may come to have."""
    return len({one.address for one in list_nodes()}) > 1 or bool(autoscaler_nodes())


def _node(resources: dict[str, float]) -> NodeResources:
    return NodeResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def is_preemptible() -> bool:
    """Returns whether the node of this process bears the label of those that may be taken away."""
    own = ray.get_runtime_context().get_node_id()
    labels: list[dict[str, str]] = [node["Labels"] for node in ray.nodes() if node["NodeID"] == own]
    return any(found.get(SPOT_LABEL) == "spot" for found in labels)
