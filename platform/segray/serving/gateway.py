"""Where requests arrive: who may ask, how much at once, and what becomes of those whose replica dies."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Protocol

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from segray.config import ServeConfig
from segray.core.errors import ServingError
from segray.serving.controller import ServingState, StatusReport, TargetVersions
from segray.serving.metrics import Counters
from segray.serving.requests import RequestError, ResponseOptions, validate_image
from segray.serving.responses import SegmentationResponse

MAX_ATTEMPTS = 5
"""Replicas that a request is given to, each after the one before it died."""


class ReplicaClient(Protocol):
    """The replicas, behind one handle."""

    async def segment(self, body: bytes, asked: ResponseOptions) -> SegmentationResponse | RequestError: ...


class StateClient(Protocol):
    """The watcher."""

    async def sync(self, report: StatusReport) -> TargetVersions: ...
    async def state(self) -> ServingState: ...


class Gateway:
    """Takes requests, and has them answered.

    Args:
        settings: of serving.
        replicas: who answer.
        watcher: who knows them.
        token: SHA-256 of the bearer token that is expected; none lets everybody in.
        who: its name.

    Attributes:
        settings: of serving.
        tally: of requests.
    """

    def __init__(
        self, settings: ServeConfig, replicas: ReplicaClient, watcher: StateClient, token: bytes | None, who: str
    ) -> None:
        self.settings, self.tally = settings, Counters()
        self._replicas, self._watcher, self._token, self._who = replicas, watcher, token, who
        self._at_once = 0
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to tell the watcher what was counted."""
        self._following = asyncio.create_task(self._follow())

    def authenticate(self, header: str | None) -> None:
        """Refuses who does not bring the token.

        Raises:
            RefusedError: 401.
        """
        if not self.is_authenticated(header):
            raise RequestError("this server wants a token; expected the header Authorization: Bearer TOKEN.", 401)

    def is_authenticated(self, header: str | None) -> bool:
        """Returns whether a header brings the token, or none is wanted."""
        if self._token is None:
            return True
        kind, _, given = (header or "").partition(" ")
        # Digests have one length, and are compared in one time.
        is_right = hmac.compare_digest(sha256(given.strip().encode("utf-8", "replace")).digest(), self._token)
        return kind.lower() == "bearer" and is_right

    @asynccontextmanager
    async def reserve(self, images: int = 1) -> AsyncIterator[None]:
        """Holds places for images, for as long as they may take.

        Raises:
            RefusedError: 429, too few are left; or 503, it took too long.
        """
        if self._at_once + images > self.settings.at_once:
            raise RequestError(f"{self._at_once} images are at work or wait; expected fewer; try again soon.", 429)
        self._at_once += images
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                yield
        except TimeoutError as error:
            raise RequestError(
                f"not answered within {self.settings.time_limit_s:g} s; try again later.", 503
            ) from error
        finally:
            self._at_once -= images

    async def segment_batch(
        self, images: Sequence[tuple[str, bytes]], asked: ResponseOptions
    ) -> list[SegmentationResponse]:
        """Returns what is asked of several images, each with its name; of one that is refused nobody is left at work.

        Raises:
            RefusedError: one is none, or too large.
            ServingError: nobody can answer.
        """
        for name, body in images:
            validate_image(body, self.settings, name)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.segment(body, asked, name)) for name, body in images]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def segment(self, body: bytes, asked: ResponseOptions, name: str = "the image") -> SegmentationResponse:
        """Returns what is asked of an encoded image; a replica that dies over it is not noticed.

        Raises:
            RefusedError: it is none, or too large.
            ServingError: nobody can answer.
        """
        validate_image(body, self.settings, name)
        for _ in range(MAX_ATTEMPTS):
            try:
                found = await self._replicas.segment(body, asked)
            except (ActorDiedError, ActorUnavailableError):
                self.tally.inc("segray_retries")
                continue
            except RayError as error:
                raise ServingError(f"{name} could not be computed; a replica's log says why.") from error
            if isinstance(found, RequestError):
                raise found
            return found
        raise ServingError(f"{MAX_ATTEMPTS} replicas died over this request; it is not tried again.")

    async def state(self) -> ServingState:
        """Returns what is known of the replicas.

        Raises:
            ServingError: the watcher does not answer.
        """
        try:
            return await asyncio.wait_for(self._watcher.state(), 5.0)
        except (RayError, TimeoutError) as error:
            raise ServingError("who watches the replicas does not answer; it is started anew.") from error

    async def _follow(self) -> None:
        """Tells what was counted, as often as the watcher lets it."""
        wanted: TargetVersions | None = None
        while True:
            try:
                wanted = await self._watcher.sync(StatusReport(self._who, dict(self.tally.counts), wanted))
            except Exception:  # the watcher is started anew; the counts are not lost
                await asyncio.sleep(1.0)
