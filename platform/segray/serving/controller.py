"""Version controller: follows an alias in the registry and distributes the target versions.

The controller polls the registry. Replicas and gateways send their status with a long poll and receive new target
versions without delay.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from segray.config import ServeConfig
from segray.core.errors import SegrayError
from segray.serving.metrics import Key, sum_counters
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import ModelFiles
from segray.tracking.registry import CHALLENGER

LONG_POLL_S = 1.0
"""Maximum time in seconds that a long poll waits for new target versions."""
CLIENT_TIMEOUT_S = 15.0
"""Time in seconds without a report after which a client counts as gone."""
RETRY_S = 10.0
"""Time in seconds after which the controller fetches a failed version again."""


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
        wanted: target versions that the client received last.
        serving: version that a replica answers with. `None` for a gateway.
        models: public description of each loaded version, by version number.
        failures: reason for each version that could not be loaded, by version number.
    """

    client_id: str
    counts: Mapping[Key, float]
    wanted: TargetVersions | None = None
    serving: str | None = None
    models: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServingState:
    """Combined status of all replicas and gateways.

    Attributes:
        wanted: target versions according to the registry.
        serving: version that each replica answers with.
        described: public description of each loaded version, by version number.
        problems: problems that need the operator's attention.
        counts: sum of all counters, clients that are gone included.
    """

    wanted: TargetVersions
    serving: tuple[str, ...]
    described: Mapping[str, dict[str, Any]]
    problems: tuple[str, ...]
    counts: Mapping[Key, float]

    @property
    def version(self) -> str | None:
        """The version that answers. During a version change, the new version takes precedence."""
        return self.wanted.champion if self.wanted.champion in self.serving else next(iter(self.serving), None)


class VersionController:
    """Follows the alias in the registry and collects the reports of replicas and gateways.

    Args:
        settings: serving configuration.
        shelf: model cache of the served model.
    """

    def __init__(self, settings: ServeConfig, shelf: ModelCache) -> None:
        self._settings, self._shelf = settings, shelf
        self._reports: dict[str, tuple[float, StatusReport]] = {}
        self._gone: dict[str, Mapping[Key, float]] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._away = ""
        self._changed = asyncio.Event()
        self._wanted: TargetVersions | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fetches the champion, then starts the polling task.

        Raises:
            SegrayError: no version is available under the alias, neither in the registry nor in the model cache.
        """
        await self._look()
        if self._wanted is None:
            raise SegrayError("; ".join(self._problems()))
        self._task = asyncio.create_task(self._watch())

    async def sync(self, report: StatusReport) -> TargetVersions:
        """Stores a report and returns the target versions (long poll).

        The call returns immediately if the targets differ from `report.wanted`. Otherwise it waits for a change, but
        at most `LONG_POLL_S` seconds.
        """
        self._reports[report.client_id] = (monotonic(), report)
        self._gone.pop(report.client_id, None)  # the client was slow, not gone
        self._hear(report)
        changed = self._changed
        if report.wanted == self._wanted:
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LONG_POLL_S)
        assert self._wanted is not None
        return self._wanted

    async def version(self, number: str) -> ModelFiles:
        """Returns the files of a version.

        Raises:
            RegistryError: the version is neither cached nor available from the registry.
        """
        return await asyncio.to_thread(self._shelf.get, number)

    async def state(self) -> ServingState:
        """Returns the combined status of all replicas and gateways."""
        assert self._wanted is not None
        self._forget()
        reports = [report for _, report in self._reports.values()]
        described = {number: one for report in reports for number, one in report.models.items()}
        return ServingState(
            wanted=self._wanted,
            serving=tuple(report.serving for report in reports if report.serving is not None),
            described=described,
            problems=tuple(self._problems()),
            counts=sum_counters([*self._gone.values(), *(report.counts for report in reports)]),
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_s)
            try:
                await self._look()
            except Exception as error:  # every failure is reported as a problem and the next poll retries
                self._away = f"{type(error).__name__}: {error}"

    async def _look(self) -> None:
        """Polls the registry. Fetches the versions it names before announcing them."""
        try:
            aliases = await asyncio.to_thread(self._shelf.aliases)
            self._away = ""
        except SegrayError as error:
            self._away, aliases = str(error), {}
            if self._wanted is None:
                aliases = await asyncio.to_thread(self._shelf.cached_aliases)
        champion = aliases.get(self._settings.alias)
        if champion is None:
            self._away = self._away or f"no version bears the alias {self._settings.alias} any more"
            return
        challenger = self._compared(aliases, champion)
        self._failures = {number: why for number, why in self._failures.items() if number in (champion, challenger)}
        await self._want(champion, challenger)

    def _compared(self, aliases: Mapping[str, str], champion: str) -> str | None:
        is_wanted = self._settings.canary > 0 or self._settings.shadow > 0
        challenger = aliases.get(CHALLENGER) if is_wanted else None
        return None if challenger == champion else challenger

    async def _want(self, champion: str, challenger: str | None) -> None:
        before = self._wanted
        is_new = before is None or before.champion != champion
        if is_new and not await self._is_at_hand(champion):
            return
        good = None if before is None else before.fallback
        if challenger is not None and (before is None or before.challenger != challenger):
            self._announce(TargetVersions(champion, None, good))  # the champion does not wait for the challenger
            challenger = challenger if await self._is_at_hand(challenger) else None
        self._announce(TargetVersions(champion, challenger, self._wanted.fallback if self._wanted else good))

    async def _is_at_hand(self, number: str) -> bool:
        """Fetches a version, unless a fetch failed within the last `RETRY_S` seconds."""
        failed = self._failures.get(number)
        if failed is not None and monotonic() - failed[0] < RETRY_S:
            return False
        try:
            await self.version(number)
        except Exception as error:  # every failure leaves the served version unchanged
            self._failures[number] = (monotonic(), str(error))
            return False
        self._failures.pop(number, None)
        return True

    def _announce(self, wanted: TargetVersions) -> None:
        if wanted == self._wanted:
            return
        before, self._wanted = self._wanted, wanted
        self._changed.set()
        self._changed = asyncio.Event()
        if before is not None:  # a restarted controller does not know yet which versions are in use
            used = {report.serving for _, report in self._reports.values()}
            needed = used | {wanted.champion, wanted.challenger, wanted.fallback, before.champion}
            self._shelf.evict_except({number for number in needed if number})

    def _hear(self, report: StatusReport) -> None:
        """Updates the fallback version from the report of a replica.

        The fallback becomes the champion if the replica serves it. Without a fallback, it becomes any served version.
        """
        wanted, serving = self._wanted, report.serving
        if wanted is None or serving is None:
            return
        if wanted.fallback is None or (serving == wanted.champion != wanted.fallback):
            self._wanted = replace(wanted, fallback=serving)

    def _forget(self) -> None:
        """Removes clients whose last report is too old, and keeps their counters."""
        now = monotonic()
        for who, (heard, report) in list(self._reports.items()):
            if now - heard > CLIENT_TIMEOUT_S:
                self._gone[who] = report.counts
                del self._reports[who]

    def _problems(self) -> list[str]:
        """Returns the current problems without duplicates."""
        found = [self._away] if self._away else []
        found += [f"version {number} is not at hand: {reason}" for number, (_, reason) in self._failures.items()]
        for _, report in self._reports.values():
            found += [f"version {number} does not load: {reason}" for number, reason in report.failures.items()]
        return list(dict.fromkeys(found))
