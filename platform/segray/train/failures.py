"""What becomes of a run whose workers failed; decided in the controller, which needs no torch for it."""

from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from segray import cluster
from segray.errors import StoppedError
from segray.train.preemption import PreemptedError


class Failures(DefaultFailurePolicy):  # type: ignore[misc]
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
        if any(isinstance(error, StoppedError) for error in errors):
            return FailureDecision.RAISE
        if any(isinstance(error, PreemptedError) for error in errors):
            return FailureDecision.RETRY
        if not any(isinstance(error, WorkerHealthCheckFailedError) for error in errors):
            before, self._seen = self._seen, {repr(error) for error in errors}
            if cluster.cause(training_failed_error) is not None or before & self._seen:
                return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def _errors(error: TrainingFailedError) -> list[BaseException]:
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
