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

    async def segment(self, body: bytes, options: ResponseOptions) -> SegmentationResponse | RequestError: ...


class StateClient(Protocol):
    """Client of the version controller."""

    async def sync(self, report: StatusReport) -> TargetVersions: ...
    async def state(self) -> ServingState: ...


class Gateway:
    """Validates requests and forwards them to the replicas.

    Args:
        settings: serving configuration.
        replicas: client of the replicas.
        controller: client of the version controller.
        token: SHA-256 digest of the expected bearer token. `None` disables authentication.
        client_id: name of the gateway.

    Attributes:
        settings: serving configuration.
        counters: request counters.
    """

    def __init__(
        self,
        settings: ServeConfig,
        replicas: ReplicaClient,
        controller: StateClient,
        token: bytes | None,
        client_id: str,
    ) -> None:
        self.settings, self.counters = settings, Counters()
        self._replicas, self._controller, self._token, self._client_id = replicas, controller, token, client_id
        self._num_pending = 0
        self._sync_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to report the counters to the version controller."""
        self._sync_task = asyncio.create_task(self._sync())

    def authenticate(self, header: str | None) -> None:
        """Checks the Authorization header of a request.

        Raises:
            RequestError: the header does not contain the expected token (status 401).
        """
        if not self.is_authenticated(header):
            raise RequestError("missing or invalid token; expected the header Authorization: Bearer TOKEN.", 401)

    def is_authenticated(self, header: str | None) -> bool:
        """Returns `True` if the header contains the expected token, or if authentication is disabled."""
        if self._token is None:
            return True
        scheme, _, token = (header or "").partition(" ")
        # Digests have equal length, and the comparison takes constant time.
        is_valid = hmac.compare_digest(sha256(token.strip().encode("utf-8", "replace")).digest(), self._token)
        return scheme.lower() == "bearer" and is_valid

    @asynccontextmanager
    async def reserve(self, num_images: int = 1) -> AsyncIterator[None]:
        """Reserves capacity for images and applies the time limit.

        Raises:
            RequestError: too many images are in progress (status 429), or the time limit was exceeded (status 503).
        """
        limit = self.settings.max_pending_images
        if self._num_pending + num_images > limit:
            raise RequestError(f"{self._num_pending} of at most {limit} images are pending; try again later.", 429)
        self._num_pending += num_images
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                yield
        except TimeoutError as error:
            raise RequestError(
                f"the request timed out after {self.settings.request_timeout_s:g} s; try again later.", 503
            ) from error
        finally:
            self._num_pending -= num_images

    async def segment_batch(
        self, images: Sequence[tuple[str, bytes]], options: ResponseOptions
    ) -> list[SegmentationResponse]:
        """Segments several named images. An error for one image cancels the others.

        Raises:
            RequestError: an image is invalid or too large.
            ServingError: no replica can segment an image.
        """
        for name, body in images:
            await asyncio.to_thread(validate_image, body, self.settings, name)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.segment(body, options, name)) for name, body in images]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def segment(self, body: bytes, options: ResponseOptions, name: str = "the image") -> SegmentationResponse:
        """Segments an encoded image. Retries with another replica, up to `MAX_ATTEMPTS` times, after a replica failure.

        Raises:
            RequestError: the image is invalid or too large.
            ServingError: no replica can segment the image.
        """
        await asyncio.to_thread(validate_image, body, self.settings, name)
        for _ in range(MAX_ATTEMPTS):
            try:
                response = await self._replicas.segment(body, options)
            except (ActorDiedError, ActorUnavailableError):
                self.counters.inc("segray_retries")
                continue
            except RayError as error:
                raise ServingError(f"cannot segment {name}; see the log of the replica.") from error
            if isinstance(response, RequestError):
                raise response
            return response
        raise ServingError(f"{MAX_ATTEMPTS} replicas failed during this request; it is not retried.")

    async def state(self) -> ServingState:
        """Returns the combined status of the replicas.

        Raises:
            ServingError: the version controller does not respond within 5 s.
        """
        try:
            return await asyncio.wait_for(self._controller.state(), 5.0)
        except (RayError, TimeoutError) as error:
            raise ServingError("the version controller does not respond; Ray Serve restarts it.") from error

    async def _sync(self) -> None:
        """Reports the counters continuously. The long poll of the controller sets the interval."""
        target: TargetVersions | None = None
        while True:
            try:
                report = StatusReport(self._client_id, dict(self.counters.counts), target)
                target = await self._controller.sync(report)
            except Exception:  # the controller restarts; no counts are lost
                await asyncio.sleep(1.0)
