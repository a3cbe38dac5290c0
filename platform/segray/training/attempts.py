"""Attempts of a run: if its Ray Train controller dies, a new one continues from the last checkpoint."""

from collections.abc import Callable

from ray.exceptions import RayActorError, RayTaskError

from segray.core.errors import TrainingError
from segray.tracking.journal import Journal, JournalReader

FAILURE_FIELD = "is_failure"
"""Field of an event in the journal that counts against `train.max_failures`."""


class FailureBudget:
    """Number of failures that a run may still survive.

    The controller counts the failures of workers in its own memory and in the journal, which survives its death.

    Args:
        journal: journal of the run. Failures recorded before, in earlier starts of the run, do not count.
        max_failures: maximum number of failures of workers and of the controller together.
    """

    def __init__(self, journal: Journal, max_failures: int) -> None:
        self._journal, self._max_failures = journal, max_failures
        self._reader = JournalReader(journal.path, journal.size())
        self._num_failures = 0

    def remaining(self) -> int:
        """Returns the number of further failures that the run survives; negative if it must end."""
        self._num_failures += sum(bool(record.get(FAILURE_FIELD)) for record in self._reader.read())
        return self._max_failures - self._num_failures

    def record_controller_loss(self) -> int:
        """Records that the controller died, and returns `remaining`."""
        fields = {FAILURE_FIELD: True}
        self._journal.write("event", text="the controller of the run died.", **fields)
        return self.remaining()


def run_attempts(
    attempt: Callable[[int], None],
    budget: FailureBudget,
    is_stop_requested: Callable[[], bool],
    on_loss: Callable[[int], None],
    resume_hint: str,
) -> None:
    """Calls `attempt` until it succeeds, or fails for another reason than the death of the controller.

    Args:
        attempt: function that trains from the last checkpoint to the end, given the number of failures of workers that
            it may survive.
        budget: failures of the run.
        is_stop_requested: function that returns `True` if the run must stop; a stop ends the controller.
        on_loss: callback after each death of the controller that the run survives; receives the number of failures that
            it still survives.
        resume_hint: command that resumes the run, for the error message.

    Raises:
        TrainingError: the controller died, and the budget is exhausted.
    """
    while True:
        try:
            attempt(max(0, budget.remaining()))
        except RayActorError as error:
            if is_stop_requested() or isinstance(error, RayTaskError):  # the latter was raised inside the controller
                raise
            remaining = budget.record_controller_loss()
            if remaining < 0:
                raise TrainingError(
                    f"the controller of the run died, and train.max_failures is exhausted; {resume_hint}."
                ) from error
            on_loss(remaining)
        else:
            return
