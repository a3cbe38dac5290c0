"""Tells the cluster which node types its autoscaler may start.

    python report-groups.py ~/ray_bootstrap_config.yaml [HEAD:PORT]

Ray has a place for it (`ClusterConfig`), and segray looks there whether a run can ever have the workers it asks for;
but the launcher's autoscaler does not fill it, and on a head without workers every run would be refused.
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig


def groups(config: dict[str, Any]) -> ClusterConfig:
    """Returns the groups of workers that a launcher's configuration allows.

    Where all groups together may not be started, they are those of the largest nodes: what fits there can be had.
    """
    found, left = ClusterConfig(), config["max_workers"]
    for name, node_type in sorted(config["available_node_types"].items(), key=size, reverse=True):
        most = min(node_type["max_workers"], left)  # the head's type allows no further ones
        left -= most
        if most > 0:
            found.node_group_configs.add(
                name=name,
                resources=node_type["resources"],
                min_count=min(node_type["min_workers"], most),
                max_count=most,
            )
    return found


def size(group: tuple[str, dict[str, Any]]) -> tuple[float, float]:
    """Returns the GPUs and CPUs of a node of a group."""
    resources = group[1]["resources"]
    return resources.get("GPU", 0), resources.get("CPU", 0)


if __name__ == "__main__":
    reported = groups(yaml.safe_load(Path(sys.argv[1]).expanduser().read_text()))
    head = sys.argv[2] if len(sys.argv) > 2 else f"{os.environ['RAY_HEAD_IP']}:6379"
    GcsClient(address=head).report_cluster_config(reported.SerializeToString())
