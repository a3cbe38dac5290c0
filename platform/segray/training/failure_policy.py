"""Preemption: how a worker hears that a node will be taken away, and what it raises once its work is safe."""

from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from segray.cluster.exceptions import root_cause
from segray.core.errors import RunStoppedError


class PreemptedError(Exception):
    """A worker stopped, with all it did in a checkpoint, because a node of the run is taken away."""


def is_preemption_announced() -> bool:
    """Returns whether this worker was told that a node of the run will be taken away.

    Ray's public `get_preemption_info` is a barrier over all workers at every call. This looks at what this worker
    was told; the ranks agree in the sum that every step makes anyway.
    """
    return get_train_context().preemption_context.preemption_info is not None


class FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """What becomes of a run whose workers failed.

    A run that was asked to end does. A worker that stopped for a preemption is none that failed: the run goes on,
    however often. A worker that died is
    replaced, `max_failures` times. An error of ours would come again (a bad row, a full disk, a loss that is not
    finite): the run ends with it, as with any other that comes twice in a row.
    """

    def __init__(self, failure_config: FailureConfig) -> None:
        super().__init__(failure_config)
        self._seen: set[str] = set()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Returns whether the run goes on."""
        errors = _errors(training_failed_error)
        if any(isinstance(error, RunStoppedError) for error in errors):
            return FailureDecision.RAISE
        if any(isinstance(error, PreemptedError) for error in errors):
            return FailureDecision.RETRY
        if not any(isinstance(error, WorkerHealthCheckFailedError) for error in errors):
            before, self._seen = self._seen, {repr(error) for error in errors}
            if root_cause(training_failed_error) is not None or before & self._seen:
                return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def _errors(error: TrainingFailedError) -> list[BaseException]:
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
