"""Nodes of a cluster: those that are alive, and those that the autoscaler can start."""

from dataclasses import dataclass
from typing import Any

import ray

from segray.cluster.ray_internals import read_cluster_config
from segray.cluster.resources import NodeResources

HEAD = "node:__internal_head__"  # resource with which Ray marks the head node
SPOT_LABEL = "ray.io/market-type"
MAX_NODES = 1000


@dataclass(frozen=True)
class NodeInfo:
    """A node that is alive.

    Attributes:
        id: Ray's id of the node.
        address: address at which other nodes reach it.
        resources: CPUs and GPUs of the node.
        object_store_bytes: size of its object store in bytes.
        is_head: whether it is the head node.
        is_local: whether this process runs on it.
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
    """Returns the nodes that are alive, the node of this process first."""
    own_id = ray.get_runtime_context().get_node_id()
    nodes = [_node_info(node, own_id) for node in ray.nodes() if node["Alive"]]
    return sorted(nodes, key=lambda node: not node.is_local)


def _node_info(node: dict[str, Any], own_id: str) -> NodeInfo:
    node_id, resources = node["NodeID"], node["Resources"]
    return NodeInfo(
        id=node_id,
        address=node["NodeManagerAddress"],
        resources=_node_resources(resources),
        object_store_bytes=int(resources.get("object_store_memory", 0)),
        is_head=HEAD in resources,
        is_local=node_id == own_id,
    )


def _node_resources(resources: dict[str, float]) -> NodeResources:
    return NodeResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def potential_nodes() -> list[NodeResources]:
    """Returns the nodes to which the cluster can grow: its head and all nodes that the autoscaler can start.

    Without an autoscaler, these are the nodes that are alive.
    """
    alive, startable = list_nodes(), autoscaler_nodes()
    return [*(node.resources for node in alive if node.is_head or not startable), *startable]


def autoscaler_nodes() -> list[NodeResources]:
    """Returns the maximum set of nodes that the autoscaler can start, including those that already run."""
    config = read_cluster_config()
    groups = [] if config is None else [group for group in config.node_group_configs if group.max_count > 0]
    # An autoscaler without a limit reports a very large maximum.
    return [_node_resources(dict(group.resources)) for group in groups for _ in range(min(group.max_count, MAX_NODES))]


def is_multi_host() -> bool:
    """Returns True if the cluster has nodes on several machines, or its autoscaler can start nodes."""
    return len({node.address for node in list_nodes()}) > 1 or bool(autoscaler_nodes())


def is_preemptible() -> bool:
    """Returns True if the node of this process is labelled as a spot node, which can be preempted."""
    own_id = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own_id and node["Labels"].get(SPOT_LABEL) == "spot" for node in ray.nodes())
