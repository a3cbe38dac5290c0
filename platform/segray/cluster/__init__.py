"""The Ray cluster: joining or starting one, what it can ever hold, and what went wrong on it."""

from segray.cluster.causes import cause, in_a_line
from segray.cluster.joining import available_cpus, connect
from segray.cluster.members import MARKET_LABEL, Member, is_preemptible, members, nodes, spans_machines, startable

__all__ = [
    "MARKET_LABEL",
    "Member",
    "available_cpus",
    "cause",
    "connect",
    "in_a_line",
    "is_preemptible",
    "members",
    "nodes",
    "spans_machines",
    "startable",
]
