"""Follows an alias in the registry, and hears from everybody at work which version they are at.

It is told what is wanted by the registry; replicas and fronts check in with it, and learn it within a moment.
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
"""So long a check-in waits for something new."""
CLIENT_TIMEOUT_S = 15.0
"""Who was not heard of for so long is not there any more."""
RETRY_S = 10.0
"""After so long what could not be fetched is tried again."""


@dataclass(frozen=True)
class TargetVersions:
    """What replicas are to have at hand.

    Attributes:
        champion: version that answers.
        challenger: version that is compared with it; none if none is.
        fallback: the last version that some replica could load, for one that cannot load the champion.
    """

    champion: str
    challenger: str | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class StatusReport:
    """What somebody at work tells.

    Attributes:
        client_id: one name for as long as it lives.
        counts: of all it did.
        wanted: what it was told last.
        serving: version a replica answers with; none of a front.
        models: the versions it has loaded, as people may know them.
        failures: why versions could not be loaded, by number.
    """

    client_id: str
    counts: Mapping[Key, float]
    wanted: TargetVersions | None = None
    serving: str | None = None
    models: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServingState:
    """What is known of all of them.

    Attributes:
        wanted: by the registry.
        serving: version each replica answers with.
        described: the versions that are loaded.
        problems: what a person should look into.
        counts: of all that was ever done.
    """

    wanted: TargetVersions
    serving: tuple[str, ...]
    described: Mapping[str, dict[str, Any]]
    problems: tuple[str, ...]
    counts: Mapping[Key, float]

    @property
    def version(self) -> str | None:
        """The version that answers; of several, while one takes another's place, the newer one."""
        return self.wanted.champion if self.wanted.champion in self.serving else next(iter(self.serving), None)


class VersionController:
    """The one that watches.

    Args:
        settings: of serving.
        shelf: of the model that is served.

    Raises:
        RegistryError: no version was ever seen under the alias.
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
        """Begins to watch, once a version is at hand.

        Raises:
            SegrayError: there is none.
        """
        await self._look()
        if self._wanted is None:
            raise SegrayError("; ".join(self._problems()))
        self._task = asyncio.create_task(self._watch())

    async def sync(self, report: StatusReport) -> TargetVersions:
        """Returns what is wanted: at once if it is new to who asks, else when it is, or soon."""
        self._reports[report.client_id] = (monotonic(), report)
        self._gone.pop(report.client_id, None)  # it was only slow
        self._hear(report)
        changed = self._changed
        if report.wanted == self._wanted:
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LONG_POLL_S)
        assert self._wanted is not None
        return self._wanted

    async def version(self, number: str) -> ModelFiles:
        """Returns a version.

        Raises:
            RegistryError: it is not at hand.
        """
        return await asyncio.to_thread(self._shelf.get, number)

    async def state(self) -> ServingState:
        """Returns what is known of all who are at work."""
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
            except Exception as error:  # whatever it is, it is told, and looked at again
                self._away = f"{type(error).__name__}: {error}"

    async def _look(self) -> None:
        """Asks the registry, and has what it names at hand before anybody is told to use it."""
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
            self._announce(TargetVersions(champion, None, good))  # who answers does not wait for who is compared
            challenger = challenger if await self._is_at_hand(challenger) else None
        self._announce(TargetVersions(champion, challenger, self._wanted.fallback if self._wanted else good))

    async def _is_at_hand(self, number: str) -> bool:
        """Fetches a version, unless that failed just now."""
        failed = self._failures.get(number)
        if failed is not None and monotonic() - failed[0] < RETRY_S:
            return False
        try:
            await self.version(number)
        except Exception as error:  # whatever it is, what is served goes on being served
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
        if before is not None:  # a watcher that is started anew has not heard yet what is in use
            used = {report.serving for _, report in self._reports.values()}
            needed = used | {wanted.champion, wanted.challenger, wanted.fallback, before.champion}
            self._shelf.evict_except({number for number in needed if number})

    def _hear(self, report: StatusReport) -> None:
        """Learns from a replica that a version can be loaded: the champion, or else what it is at."""
        wanted, serving = self._wanted, report.serving
        if wanted is None or serving is None:
            return
        if wanted.fallback is None or (serving == wanted.champion != wanted.fallback):
            self._wanted = replace(wanted, fallback=serving)

    def _forget(self) -> None:
        """Lets those go who were not heard of, and keeps what they counted."""
        now = monotonic()
        for who, (heard, report) in list(self._reports.items()):
            if now - heard > CLIENT_TIMEOUT_S:
                self._gone[who] = report.counts
                del self._reports[who]

    def _problems(self) -> list[str]:
        """Returns what a person should look into, each once."""
        found = [self._away] if self._away else []
        found += [f"version {number} is not at hand: {reason}" for number, (_, reason) in self._failures.items()]
        for _, report in self._reports.values():
            found += [f"version {number} does not load: {reason}" for number, reason in report.failures.items()]
        return list(dict.fromkeys(found))
