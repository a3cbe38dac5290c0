"""Gateway: authenticates requests, limits concurrency, and retries requests after a replica failure."""

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from hashlib import sha256
from math import isqrt
from typing import Protocol

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from segray.cluster.ray_internals import is_external_death
from segray.config import ServeConfig
from segray.core.errors import ServingError
from segray.core.numbers import MIB
from segray.serving.budget import SharedBudget
from segray.serving.metrics import Counters
from segray.serving.requests import RequestError, ResponseOptions, validate_image
from segray.serving.responses import SegmentationResponse, join_batch
from segray.serving.status import ServingState, StatusReport, TargetVersions

MAX_ATTEMPTS = 2
"""Maximum number of attempts for a request. The second one follows the death of a replica."""


class ReplicaClient(Protocol):
    """Client of the replicas."""

    def segment(
        self, body: bytes, options: ResponseOptions, client: str
    ) -> AsyncGenerator[SegmentationResponse | RequestError | None]: ...


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
        max_image_pixels: number of pixels that the replicas segment within `serve.request_timeout_s`.
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
        self._pending_images = SharedBudget(settings.max_pending_images)
        self._pending_bytes = SharedBudget(settings.max_pending_mib * MIB)
        self.max_image_pixels = settings.max_image_pixels
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

    @contextmanager
    def reserve_memory(self, client: str) -> Iterator[Callable[[int], None]]:
        """Yields a function that reserves memory for bytes of a request body. Returns all of it at the end.

        The function raises RequestError (status 429) if the bodies of all requests, or those of the client, are too
        large.
        """
        with self._pending_bytes.reservation(client) as grow:

            def reserve(num_bytes: int) -> None:
                if not grow(num_bytes):
                    limit = self.settings.max_pending_mib
                    raise RequestError(f"the pending requests have reached {limit:g} MiB; try again later.", 429)

            yield reserve

    @asynccontextmanager
    async def reserve(self, client: str, num_images: int = 1) -> AsyncIterator[None]:
        """Reserves capacity for images and applies the time limit.

        A client may use at most half of the `serve.max_pending_images` places that the other clients leave free.

        Raises:
            RequestError: too many images are in progress (status 429), or the time limit was exceeded (status 503).
        """
        pending = self._pending_images
        if not pending.reserve(client, num_images):
            raise RequestError(
                f"{pending.used:.0f} of at most {pending.limit} images are pending, and a client may use half of the "
                "places that others leave; try again later.",
                429,
            )
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                yield
        except TimeoutError as error:
            raise RequestError(
                f"the request timed out after {self.settings.request_timeout_s:g} s; try again later.", 503
            ) from error
        finally:
            pending.release(client, num_images)

    async def validate(self, images: Sequence[tuple[str, bytes]]) -> None:
        """Checks the headers of named images.

        Raises:
            RequestError: an image is invalid or too large.
        """
        for name, body in images:
            header = await asyncio.to_thread(validate_image, body, self.settings, name)
            if header.pixels > self.max_image_pixels:
                side = isqrt(self.max_image_pixels)
                raise RequestError(
                    f"{name} is {header.width}x{header.height}; this server can segment at most "
                    f"{self.max_image_pixels} pixels, for example {side}x{side}, in serve.request_timeout_s "
                    f"{self.settings.request_timeout_s:g} s; send a smaller image, or tiles of it.",
                    413,
                )

    async def segment_batch(self, images: Sequence[tuple[str, bytes]], options: ResponseOptions, client: str) -> bytes:
        """Segments several valid named images into one JSON array. An error for one image cancels the others.

        Raises:
            RequestError: an image is damaged, or the response is too large.
            ServingError: no replica can segment an image.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.segment(body, options, client, name)) for name, body in images]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        responses = [task.result() for task in tasks]
        options.require_size(sum(len(response.body) for response in responses))
        return await asyncio.to_thread(join_batch, [name for name, _ in images], responses)

    async def segment(
        self, body: bytes, options: ResponseOptions, client: str, name: str = "the image"
    ) -> SegmentationResponse:
        """Segments an encoded image. Retries once, with another replica, if the replica died before it began.

        A request that a replica was computing when it died is not retried, because it may be the cause, unless the
        death has another cause.

        Raises:
            RequestError: the image is damaged.
            ServingError: no replica can segment the image.
        """
        for _ in range(MAX_ATTEMPTS):
            has_begun = False
            try:
                async with aclosing(self._replicas.segment(body, options, client)) as results:
                    async for response in results:
                        if response is None:
                            has_begun = True
                        elif isinstance(response, RequestError):
                            raise response
                        else:
                            return response
            except (ActorDiedError, ActorUnavailableError) as error:
                if has_begun and not is_external_death(error):
                    raise ServingError(
                        f"the replica died while it segmented {name}; the request is not retried, because the image "
                        "may be the cause."
                    ) from error
                self.counters.inc("segray_retries")
            except RayError as error:
                raise ServingError(f"cannot segment {name}; see the log of the replica.") from error
        raise ServingError(f"{MAX_ATTEMPTS} replicas died during this request; it is not retried.")

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
                limit = (await self._controller.state()).max_image_pixels
                largest = self.settings.max_image_pixels
                self.max_image_pixels = largest if limit is None else min(limit, largest)
            except Exception:  # the controller restarts; no counts are lost
                await asyncio.sleep(1.0)
