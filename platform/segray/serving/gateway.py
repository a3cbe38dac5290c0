"""Gateway: authenticates requests, limits concurrency, and retries requests after a replica failure."""

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
"""Maximum number of attempts for a request. Each attempt follows the failure of a replica."""


class ReplicaClient(Protocol):
    """Client of the replicas."""

    async def segment(self, body: bytes, asked: ResponseOptions) -> SegmentationResponse | RequestError: ...


class StateClient(Protocol):
    """Client of the version controller."""

    async def sync(self, report: StatusReport) -> TargetVersions: ...
    async def state(self) -> ServingState: ...


class Gateway:
    """Validates requests and forwards them to the replicas.

    Args:
        settings: serving configuration.
        replicas: client of the replicas.
        watcher: client of the version controller.
        token: SHA-256 digest of the expected bearer token. `None` disables authentication.
        who: name of the gateway.

    Attributes:
        settings: serving configuration.
        tally: request counters.
    """

    def __init__(
        self, settings: ServeConfig, replicas: ReplicaClient, watcher: StateClient, token: bytes | None, who: str
    ) -> None:
        self.settings, self.tally = settings, Counters()
        self._replicas, self._watcher, self._token, self._who = replicas, watcher, token, who
        self._at_once = 0
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to report the counters to the version controller."""
        self._following = asyncio.create_task(self._follow())

    def authenticate(self, header: str | None) -> None:
        """Checks the Authorization header of a request.

        Raises:
            RequestError: the header does not contain the expected token (status 401).
        """
        if not self.is_authenticated(header):
            raise RequestError("this server wants a token; expected the header Authorization: Bearer TOKEN.", 401)

    def is_authenticated(self, header: str | None) -> bool:
        """Returns `True` if the header contains the expected token, or if authentication is disabled."""
        if self._token is None:
            return True
        kind, _, given = (header or "").partition(" ")
        # Digests have equal length, and the comparison takes constant time.
        is_right = hmac.compare_digest(sha256(given.strip().encode("utf-8", "replace")).digest(), self._token)
        return kind.lower() == "bearer" and is_right

    @asynccontextmanager
    async def reserve(self, images: int = 1) -> AsyncIterator[None]:
        """Reserves capacity for images and applies the time limit.

        Raises:
            RequestError: too many images are in progress (status 429), or the time limit was exceeded (status 503).
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
        """Segments several named images. An error for one image cancels the others.

        Raises:
            RequestError: an image is invalid or too large.
            ServingError: no replica can answer.
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
        """Segments an encoded image. Retries with another replica, up to `MAX_ATTEMPTS` times, after a replica failure.

        Raises:
            RequestError: the image is invalid or too large.
            ServingError: no replica can answer.
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
        """Returns the combined status of the replicas.

        Raises:
            ServingError: the version controller does not answer within 5 s.
        """
        try:
            return await asyncio.wait_for(self._watcher.state(), 5.0)
        except (RayError, TimeoutError) as error:
            raise ServingError("who watches the replicas does not answer; it is started anew.") from error

    async def _follow(self) -> None:
        """Reports the counters continuously. The long poll of the controller sets the interval."""
        wanted: TargetVersions | None = None
        while True:
            try:
                wanted = await self._watcher.sync(StatusReport(self._who, dict(self.tally.counts), wanted))
            except Exception:  # the controller restarts; no counts are lost
                await asyncio.sleep(1.0)
