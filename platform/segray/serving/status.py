"""Status of the server: target versions, the reports of replicas and gateways, and their summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from segray.serving.metrics import Key, subtract_counters, sum_counters

CLIENT_TIMEOUT_S = 15.0
"""Time in seconds without a report after which a client counts as gone."""
REPORT_TTL_S = 600.0
"""Time in seconds after which the last report of a client is reduced to its counters."""
MAX_EXPIRED_CLIENTS = 256
"""Maximum number of clients whose last counters are kept, in case that they return."""


@dataclass(frozen=True)
class TargetVersions:
    """Versions that the replicas have to load.

    Attributes:
        champion: version that answers requests.
        challenger: version that is compared with the champion, or `None`.
        fallback: last version that a replica loaded successfully. Replicas that cannot load the champion use it.
    """

    champion: str
    challenger: str | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class StatusReport:
    """Status report of a replica or a gateway.

    Attributes:
        client_id: name of the client, constant over its lifetime.
        counts: counter values since the client started.
        target: target versions that the client received last.
        serving: version that a replica answers with. `None` for a gateway.
        models: public description of each loaded version, by version number.
        failures: reason for each version that could not be loaded, by version number.
        max_image_pixels: number of pixels that the replica segments within `serve.request_timeout_s`. `None` for a
            gateway.
    """

    client_id: str
    counts: Mapping[Key, float]
    target: TargetVersions | None = None
    serving: str | None = None
    models: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    max_image_pixels: int | None = None


@dataclass(frozen=True)
class ServingState:
    """Combined status of all replicas and gateways.

    Attributes:
        target: target versions according to the registry.
        serving: version that each replica answers with.
        models: public description of each loaded version, by version number.
        problems: problems that need the operator's attention.
        counts: sum of all counters, clients that are gone included.
        max_image_pixels: number of pixels that every replica segments within `serve.request_timeout_s`, or `None`
            without a replica.
    """

    target: TargetVersions
    serving: tuple[str, ...]
    models: Mapping[str, dict[str, Any]]
    problems: tuple[str, ...]
    counts: Mapping[Key, float]
    max_image_pixels: int | None = None

    @property
    def version(self) -> str | None:
        """The version that answers. During a version change, the new version takes precedence."""
        return self.target.champion if self.target.champion in self.serving else next(iter(self.serving), None)


class ReportLog:
    """Last report of each client, and the counters of the clients that are gone.

    A client reports the values of its counters since its start. The counters of clients that are gone for long are
    added to one sum, so that the number of reports does not grow.
    """

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, StatusReport]] = {}
        self._expired: dict[str, Mapping[Key, float]] = {}
        self._expired_sum: Mapping[Key, float] = {}

    def add(self, report: StatusReport) -> None:
        """Stores the report of a client, which replaces its previous one."""
        self._reports[report.client_id] = (monotonic(), report)
        if (counts := self._expired.pop(report.client_id, None)) is not None:  # the client was silent, not dead
            self._expired_sum = subtract_counters(self._expired_sum, counts)

    def current(self) -> list[StatusReport]:
        """Returns the reports of the clients that are not gone."""
        oldest = monotonic() - CLIENT_TIMEOUT_S
        return [report for received_at, report in self._reports.values() if received_at >= oldest]

    def counts(self) -> dict[Key, float]:
        """Returns the sum of the counters of all clients, including those that are gone."""
        self._expire()
        return sum_counters([self._expired_sum, *(report.counts for _, report in self._reports.values())])

    def _expire(self) -> None:
        oldest = monotonic() - REPORT_TTL_S
        for client_id, (received_at, report) in list(self._reports.items()):
            if received_at < oldest:
                del self._reports[client_id]
                self._expired[client_id] = report.counts
                self._expired_sum = sum_counters([self._expired_sum, report.counts])
        for client_id in list(self._expired)[:-MAX_EXPIRED_CLIENTS]:
            del self._expired[client_id]
