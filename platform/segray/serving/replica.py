"""Model replica: segments images with the target version and loads a new version before switching to it."""

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import monotonic, perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from segray.config import ServeConfig
from segray.core.classes import Classes
from segray.core.errors import DataError, SegrayError, ServingError
from segray.data.images import Mask, Pixels, decode_image
from segray.data.normalize import normalize_image
from segray.serving.batcher import Batcher, BatchResult
from segray.serving.controller import StatusReport, TargetVersions
from segray.serving.metrics import Counters
from segray.serving.model_version import LoadedModel, ModelFiles
from segray.serving.requests import RequestError, ResponseOptions
from segray.serving.responses import SegmentationResponse, count_class_pixels, encode_png, mask_summary

RETRY_S = 30.0
"""Time in seconds after which a replica loads a failed version again."""
MAX_SHADOW_QUEUE = 8
"""Maximum number of images that wait for a comparison. Further images are not compared."""
FORWARD_TIMEOUT_S = 300.0
"""Duration in seconds after which a forward pass counts as hung."""

Size = tuple[int, int]


class ControllerClient(Protocol):
    """Client of the version controller."""

    async def sync(self, report: StatusReport) -> TargetVersions: ...
    async def version(self, number: str) -> ModelFiles: ...


@dataclass(frozen=True)
class _Routing:
    """Routing of one image: the version that answers, and optionally a version that is compared with it."""

    answers: LoadedModel
    compared: LoadedModel | None


class Replica:
    """Segments images with the champion, and sends canary and shadow traffic to the challenger.

    Args:
        settings: serving configuration.
        device: "cpu" or "cuda".
        registry: client of the version controller.
        who: name of the replica.
    """

    def __init__(self, settings: ServeConfig, device: str, registry: ControllerClient, who: str) -> None:
        self._settings, self._device, self._registry, self._who = settings, device, registry, who
        self._loaded: dict[str, LoadedModel] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._wanted: TargetVersions | None = None
        self._champion: LoadedModel | None = None
        self._tally = Counters()
        self._batcher: Batcher[Pixels, Mask] = Batcher(self._compute, self._at_once)
        self._codec = ThreadPoolExecutor(2, "codec")
        self._comparing: set[asyncio.Task[None]] = set()
        self._told: TargetVersions | None = None
        self._following: asyncio.Task[None] | None = None
        self._becoming: asyncio.Task[None] | None = None
        torch.set_num_threads(settings.threads)

    async def start(self) -> None:
        """Loads the target versions and starts to follow the version controller.

        Raises:
            ServingError: neither the champion nor the fallback version can be loaded.
        """
        self._told = await self._registry.sync(self._report())
        await self._become(self._told)
        if self._champion is None:
            raise ServingError("; ".join(f"version {number}: {why}" for number, (_, why) in self._failures.items()))
        self._following = asyncio.create_task(self._follow())

    async def segment(self, body: bytes, asked: ResponseOptions) -> SegmentationResponse | RequestError:
        """Segments an encoded image. Returns a `RequestError` for an invalid image instead of raising it."""
        loop, drawn = asyncio.get_running_loop(), self._draw()
        try:
            image = await loop.run_in_executor(self._codec, _decoded, body, self._settings.most_pixels)
            drawn, found = await self._answered(drawn, image)
        except DataError as error:
            return RequestError(str(error))
        if drawn.compared is not None:
            self._compare(drawn, image, found.result)
        answer, pixels = await loop.run_in_executor(self._codec, _answer, drawn.answers, image, found, asked)
        self._count(drawn.answers, found, pixels)
        return answer

    def check_health(self) -> None:
        """Checks that no forward pass hangs.

        Raises:
            ServingError: the current forward pass takes longer than `FORWARD_TIMEOUT_S`.
        """
        begun = self._batcher.batch_started_at
        if begun is not None and perf_counter() - begun > FORWARD_TIMEOUT_S:
            raise ServingError(f"a forward pass takes more than {FORWARD_TIMEOUT_S:g} s.")

    def _draw(self) -> _Routing:
        """Selects the version that answers a request: the champion, or the challenger for canary traffic."""
        champion, settings = self._champion, self._settings
        assert champion is not None
        number = None if self._wanted is None else self._wanted.challenger
        challenger = None if number is None or number == champion.number else self._loaded.get(number)
        if challenger is None:
            return _Routing(champion, None)
        if random.random() < settings.canary and challenger.classes == champion.classes:
            return _Routing(challenger, champion)
        return _Routing(champion, challenger if random.random() < settings.shadow else None)

    async def _answered(self, drawn: _Routing, image: Pixels) -> tuple[_Routing, BatchResult[Mask]]:
        """Computes a mask and returns it with its routing. The champion answers if the challenger fails."""
        try:
            return drawn, await self._computed(drawn.answers, image)
        except Exception as error:
            champion = drawn.compared
            if drawn.answers is self._champion or champion is None or isinstance(error, DataError):
                raise
            self._failures[drawn.answers.number] = (monotonic(), f"it fails over images: {_reason(error)}")
            return _Routing(champion, None), await self._computed(champion, image)

    async def _computed(self, loaded: LoadedModel, image: Pixels, is_urgent: bool = True) -> BatchResult[Mask]:
        height, width = image.shape[:2]
        return await self._batcher((loaded, (height, width)), image, is_urgent)

    def _compute(self, kind: tuple[LoadedModel, Size], images: Sequence[Pixels]) -> list[Mask]:
        torch.set_num_threads(self._settings.threads)  # the setting applies to the current thread only
        loaded, size = kind
        return loaded.predict(size, images)

    def _at_once(self, kind: tuple[LoadedModel, Size]) -> int:
        loaded, size = kind
        return loaded.max_batch_size(size)

    def _count(self, loaded: LoadedModel, found: BatchResult[Mask], pixels: NDArray[np.int64]) -> None:
        self._tally.observe("segray_batch_seconds", found.seconds, loaded.number)
        self._tally.observe("segray_batch_images", found.batch_size, loaded.number)
        for number in pixels.nonzero()[0]:
            name = loaded.classes.names[number]
            self._tally.inc("segray_class_pixels", loaded.number, name, by=float(pixels[number]))

    def _compare(self, drawn: _Routing, image: Pixels, mask: Mask) -> None:
        """Starts a background comparison with the other version, unless too many comparisons wait."""
        assert drawn.compared is not None
        if len(self._comparing) >= MAX_SHADOW_QUEUE:
            self._tally.inc("segray_uncompared_images")
            return
        task = asyncio.create_task(self._compared(drawn.answers, drawn.compared, image, mask))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compared(self, answered: LoadedModel, other: LoadedModel, image: Pixels, mask: Mask) -> None:
        found = await self._computed(other, image, is_urgent=False)
        both = (mask, answered.classes, found.result, other.classes)
        same = await asyncio.get_running_loop().run_in_executor(self._codec, count_agreeing_pixels, *both)
        labels = [one.number for one in ((other, answered) if other is self._champion else (answered, other))]
        self._tally.inc("segray_compared_images", *labels)
        self._tally.inc("segray_compared_pixels", *labels, by=mask.size)
        self._tally.inc("segray_agreed_pixels", *labels, by=same)

    async def _follow(self) -> None:
        """Sends reports to the controller over the replica's lifetime, also during loading.

        The replica keeps its current version while the controller does not answer.
        """
        while True:
            try:
                self._told = await self._registry.sync(self._report())
            except Exception:  # the controller restarts or the cluster is busy; no counts are lost
                await asyncio.sleep(1.0)
                continue
            if self._becoming is None or self._becoming.done():
                self._becoming = asyncio.create_task(self._become(self._told))

    def _report(self) -> StatusReport:
        return StatusReport(
            client_id=self._who,
            counts=dict(self._tally.counts),
            wanted=self._told,
            serving=self._champion.number if self._champion else None,
            models={number: loaded.info() for number, loaded in self._loaded.items()},
            failures={number: reason for number, (_, reason) in self._failures.items()},
        )

    async def _become(self, wanted: TargetVersions) -> None:
        """Loads the target versions, then switches to them."""
        champion = await self._at_hand(wanted.champion)
        if champion is None and self._champion is None and wanted.fallback is not None:
            champion = await self._at_hand(wanted.fallback)
        self._champion, self._wanted = champion or self._champion, replace(wanted, challenger=None)
        if wanted.challenger is not None:  # the champion does not wait for the challenger
            challenger = await self._at_hand(wanted.challenger)
            self._check_canary(challenger)
        self._wanted = wanted
        kept = {wanted.champion, wanted.challenger, self._champion.number if self._champion else None}
        self._loaded = {number: loaded for number, loaded in self._loaded.items() if number in kept}
        self._failures = {number: failed for number, failed in self._failures.items() if number in kept}

    def _check_canary(self, challenger: LoadedModel | None) -> None:
        """Reports a challenger that cannot receive canary traffic because its classes differ from the champion's."""
        champion = self._champion
        if challenger is None or champion is None or not self._settings.canary:
            return
        if challenger.classes != champion.classes:
            told = "its classes are not the champion's; it answers no share of the requests"
            self._failures[challenger.number] = (monotonic(), told)

    async def _at_hand(self, number: str) -> LoadedModel | None:
        """Returns a version and loads it if necessary.

        Returns `None` if loading fails, or failed within the last `RETRY_S` seconds.
        """
        if number in self._loaded:
            return self._loaded[number]
        failed = self._failures.get(number)
        if failed is not None and monotonic() - failed[0] < RETRY_S:
            return None
        try:
            version = await self._registry.version(number)
            self._loaded[number] = await asyncio.to_thread(LoadedModel, version, self._settings, self._device)
        except Exception as error:  # the replica keeps its current version after any failure
            self._failures[number] = (monotonic(), _reason(error))
            return None
        self._failures.pop(number, None)
        return self._loaded[number]


def count_agreeing_pixels(ours: Mask, our_classes: Classes, theirs: Mask, their_classes: Classes) -> int:
    """Returns the number of pixels with the same class name in two masks (H, W)."""
    known = {name: number for number, name in enumerate(our_classes.names)}
    spelt = np.array([known.get(name, -1) for name in their_classes.names])
    return int((spelt[theirs] == ours).sum())


def _answer(
    loaded: LoadedModel, image: Pixels, found: BatchResult[Mask], asked: ResponseOptions
) -> tuple[SegmentationResponse, NDArray[np.int64]]:
    """Returns the response and the number of pixels of each class (K,)."""
    mask, classes = found.result, loaded.classes
    pixels = count_class_pixels(mask, classes)
    is_json = asked.output == "json"
    body = None if is_json else encode_png(image, mask, classes, asked)
    told = mask_summary(mask, pixels, classes, asked) if is_json else None
    return SegmentationResponse(body, told, loaded.number, found.seconds, found.batch_size), pixels


def _decoded(body: bytes, most_pixels: int) -> Pixels:
    return decode_image(normalize_image(body, "the image", most_pixels).encoded)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SegrayError) else f"{type(error).__name__}: {error}"
