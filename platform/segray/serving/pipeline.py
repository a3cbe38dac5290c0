"""Image pipeline of a replica: decoding, forward pass and encoding, with small images before large ones."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from segray.config import ServeConfig
from segray.core.errors import DataError, ServingError
from segray.data.images import Mask, Pixels
from segray.data.normalize import decode_upright
from segray.serving.batcher import BatchResult
from segray.serving.fair_queue import FairQueue
from segray.serving.image_header import ImageHeader
from segray.serving.lane import BatchKey, Check, CodecThreads, Lane
from segray.serving.model_version import LoadedModel
from segray.serving.requests import ResponseOptions
from segray.serving.responses import SegmentationResponse, count_class_pixels, encode_body
from segray.serving.throttle import Throttle

FORWARD_TIMEOUT_S = 300.0
"""Duration in seconds after which a forward pass counts as hung."""
MIN_SMALL_PIXELS = 2**18
"""Number of pixels up to which an image is small for every model."""
SHAPE_S = 2e-8
"""Time in seconds to encode the shapes of a mask, per pixel and roughly. Only ratios of requests matter."""


@dataclass(frozen=True)
class SegmentedImage:
    """An image with its mask.

    Attributes:
        loaded: version that computed the mask.
        result: mask (H, W).
        image: RGB image (H, W, 3). `None` if the response does not need it.
    """

    loaded: LoadedModel
    result: BatchResult[Mask]
    image: Pixels | None


class ImagePipeline:
    """Threads and queues of a replica.

    Small images are urgent. Large images, and the shapes of masks, whose encoding takes long, get the time that small
    images leave, but at least `throttle.MIN_SHARE` of it. Clients take turns in each queue.

    Args:
        settings: serving configuration.

    Attributes:
        small, large: lanes of small and of large images.
    """

    def __init__(self, settings: ServeConfig) -> None:
        self._num_threads = settings.cpus_per_replica
        self.small = Lane("small", self._predict, 2 * settings.max_batch_size, num_codec_threads=2)
        is_idle = self.small.batcher.is_idle
        self.large = Lane("large", self._predict_large, 2, num_codec_threads=1, throttle=Throttle(is_idle))
        self._large_throttle = Throttle(is_idle)
        self._shape_codecs, self._shape_queue = CodecThreads("shapes", 1, Throttle(is_idle)), FairQueue(1)
        self._num_received = self._num_active = 0

    @property
    def num_received(self) -> int | None:
        """Number of images received so far, or `None` while an image is in progress."""
        return None if self._num_active else self._num_received

    @asynccontextmanager
    async def slot(
        self, loaded: LoadedModel, header: ImageHeader, client: str, seconds: float
    ) -> AsyncIterator[tuple[Lane, float]]:
        """Waits for the turn of a client, and yields the lane of its image and the rank in the lane."""
        is_small = header.pixels <= max(loaded.crop_pixels, MIN_SMALL_PIXELS)
        lane = self.small if is_small else self.large
        self._num_received += 1
        self._num_active += 1
        try:
            async with lane.queue.slot(client, seconds) as rank:
                yield lane, rank
        finally:
            self._num_active -= 1

    async def encode(
        self, segmented: SegmentedImage, options: ResponseOptions, threads: CodecThreads
    ) -> tuple[SegmentationResponse, NDArray[np.int64]]:
        """Returns the response for an image, and the number of pixels of each class (K,).

        Raises:
            ResponseSizeError: the response is too large.
        """
        return await threads.run(lambda check: _encode_response(segmented, options, check))

    async def encode_shapes(
        self, segmented: SegmentedImage, options: ResponseOptions, client: str
    ) -> tuple[SegmentationResponse, NDArray[np.int64]]:
        """Returns the same as `encode` for a response with shapes, when it is the turn of the client."""
        async with self._shape_queue.slot(client, segmented.result.result.size * SHAPE_S):
            return await self.encode(segmented, options, self._shape_codecs)

    def check_health(self) -> None:
        """Checks that no forward pass hangs.

        Raises:
            ServingError: a forward pass takes longer than `FORWARD_TIMEOUT_S`.
        """
        for lane in (self.small, self.large):
            started_at = lane.batcher.batch_started_at
            if started_at is not None and perf_counter() - started_at > FORWARD_TIMEOUT_S:
                raise ServingError(f"a forward pass takes more than {FORWARD_TIMEOUT_S:g} s.")

    def _predict(self, key: BatchKey, images: Sequence[Pixels], check: Check) -> list[Mask]:
        torch.set_num_threads(self._num_threads)  # the setting applies to the current thread only
        loaded, size = key
        return loaded.predict(size, images, check)

    def _predict_large(self, key: BatchKey, images: Sequence[Pixels], check: Check) -> list[Mask]:
        """Computes large images. A step is a layer."""

        def keep_alive() -> None:
            self.large.batcher.batch_started_at = perf_counter()  # it does not hang
            check()

        def pause() -> None:
            self._large_throttle.stop()
            self._large_throttle.start(keep_alive)

        self._large_throttle.start(keep_alive)
        try:
            return self._predict(key, images, pause)
        finally:
            self._large_throttle.stop()


def decode_as_announced(body: bytes, header: ImageHeader) -> Pixels:
    """Decodes an image.

    Raises:
        DataError: the image is damaged, or its size differs from the one that its header states and that was charged.
    """
    image = decode_upright(body, "the image", header.pixels, (header.format,))
    height, width = image.shape[:2]
    if {height, width} != {header.height, header.width}:
        raise DataError(
            f"the image has the size {header.width}x{header.height} in its header, but {width}x{height} in its data; "
            "expected equal sizes; save it again."
        )
    return image


def _encode_response(
    segmented: SegmentedImage, options: ResponseOptions, check: Callable[[], None]
) -> tuple[SegmentationResponse, NDArray[np.int64]]:
    loaded, result = segmented.loaded, segmented.result
    class_pixels = count_class_pixels(result.result, loaded.classes)
    options = replace(options, version=loaded.number)
    body, media_type = encode_body(segmented.image, result.result, class_pixels, loaded.classes, options, check)
    return SegmentationResponse(body, media_type, loaded.number, result.seconds, result.batch_size), class_pixels
