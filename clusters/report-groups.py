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
    """Returns the groups of workers that a launcher's configuration allows."""
    found = ClusterConfig()
    for name, node_type in config["available_node_types"].items():
        if node_type["max_workers"] > 0:  # the head's type allows no further ones
            found.node_group_configs.add(
                name=name,
                resources=node_type["resources"],
                min_count=node_type["min_workers"],
                max_count=min(node_type["max_workers"], config["max_workers"]),
            )
    return found


if __name__ == "__main__":
    reported = groups(yaml.safe_load(Path(sys.argv[1]).expanduser().read_text()))
    head = sys.argv[2] if len(sys.argv) > 2 else f"{os.environ['RAY_HEAD_IP']}:6379"
    GcsClient(address=head).report_cluster_config(reported.SerializeToString())
