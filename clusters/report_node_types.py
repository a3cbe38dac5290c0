"""Reports to a cluster which node types its autoscaler can start.

    python report_node_types.py ~/ray_bootstrap_config.yaml [HEAD:PORT]

segray reads this report (Ray's `ClusterConfig`) to decide whether the cluster can ever provide the workers of a run.
The launcher's autoscaler does not write it; without it, a head that has no workers yet would refuse every run.
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from ray.core.generated.autoscaler_pb2 import ClusterConfig

from segray.cluster.ray_internals import report_cluster_config


def build_cluster_config(launcher: dict[str, Any]) -> ClusterConfig:
    """Returns the node types that a launcher file allows, with the maximum number of nodes of each.

    If the cluster's `max_workers` is less than the sum of the types, the largest node types are counted first.
    """
    config, remaining = ClusterConfig(), launcher["max_workers"]
    for name, node_type in sorted(launcher["available_node_types"].items(), key=_node_size, reverse=True):
        max_count = min(node_type["max_workers"], remaining)  # 0 for the type of the head
        remaining -= max_count
        if max_count > 0:
            config.node_group_configs.add(
                name=name,
                resources=node_type["resources"],
                min_count=min(node_type["min_workers"], max_count),
                max_count=max_count,
            )
    return config


def _node_size(item: tuple[str, dict[str, Any]]) -> tuple[float, float]:
    """Returns the GPUs and CPUs of a node of a type."""
    resources = item[1]["resources"]
    return resources.get("GPU", 0), resources.get("CPU", 0)


def main() -> None:
    """Reads the launcher file and sends the report to the head."""
    launcher = yaml.safe_load(Path(sys.argv[1]).expanduser().read_text())
    address = sys.argv[2] if len(sys.argv) > 2 else f"{os.environ['RAY_HEAD_IP']}:6379"
    report_cluster_config(address, build_cluster_config(launcher))


if __name__ == "__main__":
    main()
