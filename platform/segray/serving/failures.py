"""Failures of model versions, and when a failed version is tried again."""

from collections.abc import Collection
from time import monotonic

RETRY_S = 30.0
"""Time in seconds after which a failed version is fetched or loaded again."""


class FailureLog:
    """Versions that could not be fetched or used, with the reason and the time of the last failure."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[float, str]] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Reason of each failure, by version number."""
        return {number: reason for number, (_, reason) in self._failures.items()}

    def add(self, number: str, reason: str) -> None:
        """Records a failure."""
        self._failures[number] = (monotonic(), reason)

    def remove(self, number: str) -> None:
        """Removes the failure of a version, if there is one."""
        self._failures.pop(number, None)

    def keep_only(self, numbers: Collection[str | None]) -> None:
        """Removes the failures of all other versions."""
        self._failures = {number: failure for number, failure in self._failures.items() if number in numbers}

    def may_retry(self, number: str) -> bool:
        """Returns `False` if the version failed within the last `RETRY_S` seconds."""
        return number not in self._failures or monotonic() - self._failures[number][0] >= RETRY_S
