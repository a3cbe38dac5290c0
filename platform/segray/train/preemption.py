"""Preemption: how a worker hears that a node will be taken away, and what it raises once its work is safe."""

from ray.train.v2._internal.execution.context import get_train_context


class PreemptedError(Exception):
    """A worker stopped, with all it did in a checkpoint, because a node of the run is taken away."""


def is_announced() -> bool:
    """Returns whether this worker was told that a node of the run will be taken away.

    Ray's public `get_preemption_info` is a barrier over all workers at every call. This looks at what this worker
    was told; the ranks agree in the sum that every step makes anyway.
    """
    return get_train_context().preemption_context.preemption_info is not None
