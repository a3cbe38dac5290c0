"""Version controller: follows an alias in the registry and distributes the target versions.

The controller polls the registry. Replicas and gateways are its clients: each one calls `VersionController.sync` in a
loop to report its status and to receive new target versions without delay.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from segray.config import ServeConfig
from segray.core.errors import SegrayError
from segray.serving.failures import FailureLog
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import ModelFiles
from segray.serving.status import ReportLog, ServingState, StatusReport, TargetVersions
from segray.tracking.tags import CHALLENGER

LONG_POLL_S = 1.0
"""Maximum time in seconds that a long poll waits for new target versions."""


class DesiredVersions(NamedTuple):
    """Versions of the aliases in the registry. They become the target versions once they are fetched."""

    champion: str
    challenger: str | None


class VersionController:
    """Follows the alias in the registry and collects the reports of replicas and gateways.

    Args:
        settings: serving configuration.
        cache: model cache of the served model.
    """

    _desired: DesiredVersions
    _target: TargetVersions

    def __init__(self, settings: ServeConfig, cache: ModelCache) -> None:
        self._settings, self._cache = settings, cache
        self._fetched: set[str] = set()
        self._fetch_tasks: dict[str, asyncio.Task[None]] = {}
        self._failures = FailureLog()
        self._registry_problem = ""
        self._target_changed = asyncio.Event()
        self._reports = ReportLog()
        self._poll_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fetches the champion, and starts to fetch the challenger and to poll the registry.

        Raises:
            SegrayError: no version is available under the alias, neither in the registry nor in the model cache.
        """
        aliases = await self._read_aliases()
        if aliases is None:
            aliases = await asyncio.to_thread(self._cache.cached_aliases)
        desired = self._find_desired(aliases)
        if desired is None or not await self._fetch(desired.champion):
            raise SegrayError("; ".join(self._problems()))
        self._desired, self._target = desired, TargetVersions(desired.champion)
        await self._follow(desired)
        self._poll_task = asyncio.create_task(self._poll_registry())

    async def sync(self, report: StatusReport) -> TargetVersions:
        """Stores a report and returns the target versions (long poll).

        The call returns immediately if the targets differ from `report.target`. Otherwise it waits for a change, but
        at most `LONG_POLL_S` seconds.
        """
        self._reports.add(report)
        self._update_fallback(report)
        if report.target == self._target:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._target_changed.wait(), LONG_POLL_S)
        return self._target

    async def version(self, number: str) -> ModelFiles:
        """Returns the files of a version.

        Raises:
            RegistryError: the version is neither cached nor available from the registry.
        """
        return await asyncio.to_thread(self._cache.get, number)

    async def state(self) -> ServingState:
        """Returns the combined status of all replicas and gateways."""
        reports = self._reports.current()
        limits = [report.max_image_pixels for report in reports if report.max_image_pixels is not None]
        return ServingState(
            target=self._target,
            serving=tuple(report.serving for report in reports if report.serving is not None),
            models={number: model for report in reports for number, model in report.models.items()},
            problems=tuple(self._problems()),
            counts=self._reports.counts(),
            max_image_pixels=min(limits, default=None),
        )

    async def _poll_registry(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_s)
            try:
                aliases = await self._read_aliases()
                desired = None if aliases is None else self._find_desired(aliases)
                if desired is not None:
                    await self._follow(desired)
            except Exception as error:  # every failure is reported as a problem and the next poll retries
                self._registry_problem = f"{type(error).__name__}: {error}"

    async def _read_aliases(self) -> Mapping[str, str] | None:
        """Returns the version of each alias, or `None` if the registry is unavailable."""
        try:
            aliases = await asyncio.to_thread(self._cache.aliases)
        except SegrayError as error:
            self._registry_problem = str(error)
            return None
        self._registry_problem = ""
        return aliases

    def _find_desired(self, aliases: Mapping[str, str]) -> DesiredVersions | None:
        """Returns the versions of the aliases. A missing champion is reported as a problem."""
        champion = aliases.get(self._settings.alias)
        if champion is None:
            self._registry_problem = self._registry_problem or f"no version has the alias {self._settings.alias}"
            return None
        has_challenger = self._settings.canary > 0 or self._settings.shadow > 0
        challenger = aliases.get(CHALLENGER) if has_challenger else None
        return DesiredVersions(champion, None if challenger == champion else challenger)

    async def _follow(self, desired: DesiredVersions) -> None:
        """Starts to fetch the desired versions that are new, and switches to those that are fetched."""
        self._desired = desired
        self._fetched.intersection_update(desired)
        self._failures.keep_only(desired)
        for number in desired:
            if number is None or number in self._fetched or number in self._fetch_tasks:
                continue
            if self._failures.may_retry(number):
                self._fetch_tasks[number] = asyncio.create_task(self._fetch_and_switch(number))
        await self._switch_to_fetched()

    async def _fetch_and_switch(self, number: str) -> None:
        await self._fetch(number)
        del self._fetch_tasks[number]
        await self._switch_to_fetched()

    async def _fetch(self, number: str) -> bool:
        """Fetches a version into the model cache and returns whether this succeeded."""
        try:
            await self.version(number)
        except Exception as error:  # every failure leaves the served version unchanged
            self._failures.add(number, str(error))
            return False
        self._failures.remove(number)
        self._fetched.add(number)
        return True

    async def _switch_to_fetched(self) -> None:
        """Makes the desired versions that are fetched the target versions."""
        previous, (champion, challenger) = self._target, self._desired
        if champion not in self._fetched:
            champion = previous.champion
        if challenger not in self._fetched or challenger == champion:
            challenger = None
        self._set_target(replace(previous, champion=champion, challenger=challenger))
        if self._target != previous:
            await self._evict_unused(previous)

    def _set_target(self, target: TargetVersions) -> None:
        """Changes the target versions and ends all waiting long polls."""
        if target != self._target:
            self._target = target
            self._target_changed.set()
            self._target_changed = asyncio.Event()

    def _update_fallback(self, report: StatusReport) -> None:
        """Makes the champion the fallback if a replica serves it. Without a fallback, any served version becomes it."""
        serving, target = report.serving, self._target
        if serving is not None and (target.fallback is None or serving == target.champion):
            self._set_target(replace(target, fallback=serving))

    async def _evict_unused(self, previous: TargetVersions) -> None:
        """Removes versions from the model cache, except the targets, the versions in use, and the previous champion."""
        in_use = {report.serving for report in self._reports.current()} - {None}
        if not in_use:  # no replica has reported to a new controller yet
            return
        target = self._target
        needed = {*in_use, *self._desired, target.champion, target.challenger, target.fallback, previous.champion}
        await asyncio.to_thread(self._cache.evict_except, {number for number in needed if number is not None})

    def _problems(self) -> list[str]:
        """Returns the current problems without duplicates."""
        problems = [self._registry_problem] if self._registry_problem else []
        problems += [f"cannot fetch version {number}: {reason}" for number, reason in self._failures.reasons.items()]
        for report in self._reports.current():
            problems += [f"cannot use version {number}: {reason}" for number, reason in report.failures.items()]
        return list(dict.fromkeys(problems))
