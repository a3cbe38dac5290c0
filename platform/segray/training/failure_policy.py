"""Preemption detection in workers, and the decision to continue or end a run after a failure."""

from ray.train import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from segray.core.errors import RunStoppedError, root_cause
from segray.training.ray_internals import (
    DefaultFailurePolicy,
    FailureDecision,
    WorkerHealthCheckFailedError,
    preemption_info,
)


class PreemptedError(Exception):
    """Error of a worker that saved a checkpoint and stopped because a node of the run is preempted."""


def is_preemption_announced() -> bool:
    """Returns `True` if Ray notified this worker that a node of the run will be preempted.

    Ray's public `get_preemption_info` synchronises all workers at every call. This function reads only the local
    notification. The ranks then agree through the all-reduce that each step performs anyway.
    """
    return preemption_info() is not None


class FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Decides whether a run continues after its workers failed.

    A stop request ends the run. A preemption does not count as a failure: the run continues, without a limit. A dead
    worker is replaced up to `max_failures` times. A segray error would occur again (a row that cannot be decoded, a
    full disk, a loss that is not finite), so it ends the run. Any other error ends the run if it occurs twice in a row.
    """

    def __init__(self, failure_config: FailureConfig) -> None:
        super().__init__(failure_config)
        self._previous_errors: set[str] = set()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Returns the decision to retry the run or to raise the error."""
        errors = _errors(training_failed_error)
        if any(isinstance(error, RunStoppedError) for error in errors):
            return FailureDecision.RAISE
        if any(isinstance(error, PreemptedError) for error in errors):
            return FailureDecision.RETRY
        if not any(isinstance(error, WorkerHealthCheckFailedError) for error in errors):
            previous, self._previous_errors = self._previous_errors, {repr(error) for error in errors}
            if root_cause(training_failed_error) is not None or previous & self._previous_errors:
                return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def _errors(error: TrainingFailedError) -> list[BaseException]:
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
