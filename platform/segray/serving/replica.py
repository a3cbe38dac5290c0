"""Model replica: segments images with the target version and loads a new version before switching to it."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from segray.config import ServeConfig
from segray.core.device_errors import is_device_failure
from segray.core.errors import DataError, SegrayError, ServingError
from segray.data.images import Mask, Pixels
from segray.serving.batcher import BatchResult
from segray.serving.comparison import Comparisons
from segray.serving.failures import FailureLog
from segray.serving.image_header import ImageHeader, read_image_header
from segray.serving.lane import Lane
from segray.serving.metrics import Counters
from segray.serving.model_version import LoadedModel, ModelFiles
from segray.serving.pipeline import ImagePipeline, SegmentedImage, decode_as_announced
from segray.serving.requests import RequestError, ResponseOptions
from segray.serving.responses import SegmentationResponse
from segray.serving.speed import SAFETY
from segray.serving.status import StatusReport, TargetVersions

SPEED_INTERVAL_S = 60.0
"""Interval in seconds of the attempts to measure the speed of a version that was loaded beside requests."""


class ControllerClient(Protocol):
    """Client of the version controller."""

    async def sync(self, report: StatusReport) -> TargetVersions: ...
    async def version(self, number: str) -> ModelFiles: ...


@dataclass(frozen=True)
class _Routing:
    """Routing of one image: the version that answers, and optionally a version that is compared with it."""

    primary: LoadedModel
    shadow: LoadedModel | None


@dataclass(frozen=True)
class _Job:
    """A request that is computed: its image, its response options, its lane and its rank in the lane."""

    body: bytes
    header: ImageHeader
    options: ResponseOptions
    lane: Lane
    rank: float


class Replica:
    """Segments images with the champion, and sends canary and shadow traffic to the challenger.

    Args:
        settings: serving configuration.
        device: "cpu" or "cuda".
        controller: client of the version controller.
        client_id: name of the replica.
    """

    def __init__(self, settings: ServeConfig, device: str, controller: ControllerClient, client_id: str) -> None:
        self._settings, self._device, self._controller, self._client_id = settings, device, controller, client_id
        self._target: TargetVersions | None = None
        self._champion: LoadedModel | None = None
        self._loaded: dict[str, LoadedModel] = {}
        self._load_tasks: dict[str, asyncio.Task[None]] = {}
        self._speed_tasks: set[asyncio.Task[None]] = set()
        self._failures = FailureLog()
        self._counters = Counters()
        self._pipeline = ImagePipeline(settings)
        self._comparisons = Comparisons(self._pipeline.large, self._counters, self._record_prediction_failure)
        self._device_failure: str | None = None
        self._sync_task: asyncio.Task[None] | None = None
        torch.set_num_threads(settings.cpus_per_replica)

    async def start(self) -> None:
        """Loads the champion, and starts to load the challenger and to follow the version controller.

        Raises:
            ServingError: neither the champion nor the fallback version can be loaded.
        """
        target = self._target = await self._controller.sync(self._report())
        self._champion = await self._load(target.champion)
        if self._champion is None and target.fallback is not None:
            self._champion = await self._load(target.fallback)
        if self._champion is None:
            reasons = self._failures.reasons.items()
            raise ServingError("; ".join(f"cannot load version {number}: {reason}" for number, reason in reasons))
        self._apply_target(target)
        self._sync_task = asyncio.create_task(self._sync())

    async def segment(
        self, body: bytes, options: ResponseOptions, client: str
    ) -> AsyncIterator[SegmentationResponse | RequestError | None]:
        """Segments an encoded image. Yields `None` when the computation begins, and then the response.

        Small images do not wait for large ones, and clients take turns. An invalid image yields a `RequestError`,
        which is not raised. If the iterator is closed, the computation is dropped.

        Args:
            body: encoded image.
            options: response options.
            client: name of the client.
        """
        routing = self._select_versions()
        header = read_image_header(body)
        seconds = routing.primary.estimate_seconds((header.height, header.width))
        if seconds * SAFETY > self._settings.request_timeout_s:
            yield self._refuse_slow_image(header, seconds)
            return
        async with self._pipeline.slot(routing.primary, header, client, seconds) as (lane, rank):
            yield None
            segmented = await self._segment(_Job(body, header, options, lane, rank), routing)
            if isinstance(segmented, RequestError):
                yield segmented
                return
            if not options.has_shapes:
                yield await self._respond(segmented, self._pipeline.encode(segmented, options, lane.codecs))
                return
        # The encoding of shapes takes long, and holds no slot of the lane.
        yield await self._respond(segmented, self._pipeline.encode_shapes(segmented, options, client))

    async def _segment(self, job: _Job, routing: _Routing) -> SegmentedImage | RequestError:
        try:
            image = await job.lane.codecs.run(lambda _: decode_as_announced(job.body, job.header))
            routing, result = await self._compute_primary(routing, image, job)
        except DataError as error:
            return RequestError(str(error))
        if routing.shadow is not None:
            self._comparisons.start(routing.primary, routing.shadow, image, result.result, self._champion)
        return SegmentedImage(routing.primary, result, None if job.options.output == "json" else image)

    async def _respond(
        self, segmented: SegmentedImage, encoding: Awaitable[tuple[SegmentationResponse, NDArray[np.int64]]]
    ) -> SegmentationResponse | RequestError:
        """Returns an encoded response, and counts it."""
        try:
            response, class_pixels = await encoding
        except RequestError as error:
            return error
        self._count_response(segmented.loaded, segmented.result, class_pixels)
        return response

    def _refuse_slow_image(self, header: ImageHeader, seconds: float) -> RequestError:
        return RequestError(
            f"the image is {header.width}x{header.height}, which takes {seconds:.1f} s; expected at most "
            f"{self._settings.request_timeout_s / SAFETY:g} s of serve.request_timeout_s "
            f"{self._settings.request_timeout_s:g} s; send a smaller image, or tiles of it.",
            413,
        )

    def check_health(self) -> None:
        """Checks that no forward pass hangs and that the device is usable. Ray Serve replaces a replica that fails.

        Raises:
            ServingError: a forward pass takes longer than `FORWARD_TIMEOUT_S`, or every further call on the device
                fails.
        """
        if self._device_failure is not None:
            raise ServingError(f"the device of the replica is unusable: {self._device_failure}")
        self._pipeline.check_health()

    async def _sync(self) -> None:
        """Reports to the controller and follows its targets over the replica's lifetime, also during loading.

        The replica keeps its current versions while the controller does not respond.
        """
        while True:
            try:
                self._target = await self._controller.sync(self._report())
            except Exception:  # the controller restarts or the cluster is busy; no counts are lost
                await asyncio.sleep(1.0)
                continue
            self._apply_target(self._target)

    def _report(self) -> StatusReport:
        return StatusReport(
            client_id=self._client_id,
            counts=dict(self._counters.counts),
            target=self._target,
            serving=self._champion.number if self._champion else None,
            models={number: loaded.info() for number, loaded in self._loaded.items()},
            failures=self._failures.reasons | self._canary_problem(),
            max_image_pixels=self._champion.max_image_pixels if self._champion else None,
        )

    def _apply_target(self, target: TargetVersions) -> None:
        """Switches to the target versions that are loaded, and starts to load the others independently."""
        self._champion = self._loaded.get(target.champion, self._champion)
        used = {target.champion, target.challenger, self._champion.number if self._champion else None}
        self._loaded = {number: loaded for number, loaded in self._loaded.items() if number in used}
        self._failures.keep_only(used)
        for number in (target.champion, target.challenger):
            if number is None or number in self._loaded or number in self._load_tasks:
                continue
            if self._failures.may_retry(number):
                self._load_tasks[number] = asyncio.create_task(self._load_and_switch(number))

    async def _load_and_switch(self, number: str) -> None:
        await self._load(number)
        del self._load_tasks[number]
        if self._target is not None:  # it may have changed during loading
            self._apply_target(self._target)

    async def _load(self, number: str) -> LoadedModel | None:
        """Loads a version and returns it. A failure is recorded and returns `None`."""
        try:
            files = await self._controller.version(number)
            loaded = await asyncio.to_thread(LoadedModel, files, self._settings, self._device)
        except Exception as error:  # the replica keeps its current version after any failure
            if is_device_failure(error):
                self._device_failure = _error_text(error)
            self._failures.add(number, _error_text(error))
            return None
        self._failures.remove(number)
        self._loaded[number] = loaded
        task = asyncio.create_task(self._measure_speed(loaded))
        self._speed_tasks.add(task)
        task.add_done_callback(self._speed_tasks.discard)
        return loaded

    async def _measure_speed(self, loaded: LoadedModel) -> None:
        """Measures the speed of a version again, until no request disturbs the measurement.

        Other versions that load, and requests that are computed meanwhile, make the first measurement too slow.
        """
        while True:
            await asyncio.sleep(SPEED_INTERVAL_S)
            num_received = self._pipeline.num_received
            if self._loaded.get(loaded.number) is not loaded:
                return
            if num_received is None:
                continue
            speed = await asyncio.to_thread(loaded.measure_speed)
            if self._pipeline.num_received == num_received:
                loaded.set_speed(speed)
                return

    def _challenger(self) -> LoadedModel | None:
        """Returns the challenger if it is loaded and not the version that answers."""
        number = self._target.challenger if self._target else None
        loaded = self._loaded.get(number) if number else None
        return None if loaded is self._champion else loaded

    def _canary_problem(self) -> dict[str, str]:
        """Reports a challenger that cannot receive canary traffic because its classes differ from the champion's."""
        champion, challenger = self._champion, self._challenger()
        if not self._settings.canary or champion is None or challenger is None:
            return {}
        if challenger.classes == champion.classes:
            return {}
        return {challenger.number: "its classes differ from the champion's, so it receives no canary traffic"}

    def _select_versions(self) -> _Routing:
        """Selects the version that answers a request: the champion, or the challenger for canary traffic."""
        champion, challenger, settings = self._champion, self._challenger(), self._settings
        assert champion is not None
        if challenger is None:
            return _Routing(champion, None)
        if random.random() < settings.canary and challenger.classes == champion.classes:
            return _Routing(challenger, champion)
        return _Routing(champion, challenger if random.random() < settings.shadow else None)

    async def _compute_primary(self, routing: _Routing, image: Pixels, job: _Job) -> tuple[_Routing, BatchResult[Mask]]:
        """Computes a mask and returns it with its routing. The champion answers if the challenger fails."""
        try:
            return routing, await self._compute(routing.primary, image, job)
        except Exception as error:
            champion = routing.shadow
            if routing.primary is self._champion or champion is None or isinstance(error, DataError):
                raise
            return _Routing(champion, None), await self._compute(champion, image, job)

    async def _compute(self, loaded: LoadedModel, image: Pixels, job: _Job) -> BatchResult[Mask]:
        try:
            return await job.lane.batcher((loaded, image.shape[:2]), image, job.rank)
        except DataError:
            raise
        except Exception as error:
            self._record_prediction_failure(loaded, error)
            raise

    def _record_prediction_failure(self, loaded: LoadedModel, error: Exception) -> None:
        if is_device_failure(error):
            self._device_failure = _error_text(error)
        self._counters.inc("segray_failed_images", loaded.number)
        if loaded.number in self._loaded:
            count = self._counters.counts["segray_failed_images", (loaded.number,), ""]
            self._failures.add(loaded.number, f"failed images: {count:.0f}, the last one with {_error_text(error)}")

    def _count_response(self, loaded: LoadedModel, result: BatchResult[Mask], class_pixels: NDArray[np.int64]) -> None:
        self._counters.observe("segray_batch_seconds", result.seconds, loaded.number)
        self._counters.observe("segray_batch_images", result.batch_size, loaded.number)
        for class_id in class_pixels.nonzero()[0]:
            name = loaded.classes.names[class_id]
            self._counters.inc("segray_class_pixels", loaded.number, name, by=float(class_pixels[class_id]))


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, SegrayError) else f"{type(error).__name__}: {error}"
