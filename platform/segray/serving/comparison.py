"""Comparisons of champion and challenger on images that one of them has answered."""

import asyncio
from collections.abc import Callable
from math import inf

import numpy as np

from segray.core.classes import Classes
from segray.data.images import Mask, Pixels
from segray.serving.lane import Lane
from segray.serving.metrics import Counters
from segray.serving.model_version import LoadedModel

MAX_SHADOW_QUEUE = 8
"""Maximum number of images that wait for a comparison. Further images are not compared."""


class Comparisons:
    """Comparisons in the background, which are computed when no request waits.

    Args:
        lane: lane that computes the second mask.
        counters: counters of the compared images and pixels.
        record_failure: function that is called with a version that fails on an image, and the error.
    """

    def __init__(
        self, lane: Lane, counters: Counters, record_failure: Callable[[LoadedModel, Exception], None]
    ) -> None:
        self._lane, self._counters, self._record_failure = lane, counters, record_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, primary: LoadedModel, shadow: LoadedModel, image: Pixels, mask: Mask, champion: LoadedModel | None
    ) -> None:
        """Starts a comparison, unless too many wait.

        Args:
            primary: version that answered.
            shadow: version that is compared with it.
            image: RGB image (H, W, 3).
            mask: mask (H, W) of the primary version.
            champion: the champion, which is one of the two versions.
        """
        if len(self._tasks) >= MAX_SHADOW_QUEUE:
            self._counters.inc("segray_uncompared_images")
            return
        labels = (shadow.number, primary.number) if shadow is champion else (primary.number, shadow.number)
        task = asyncio.create_task(self._compare(primary, shadow, image, mask, labels))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, primary: LoadedModel, shadow: LoadedModel, image: Pixels, mask: Mask, labels: tuple[str, str]
    ) -> None:
        height, width = image.shape[:2]
        try:
            result = await self._lane.batcher((shadow, (height, width)), image, rank=inf)
        except Exception as error:  # the image is answered already
            self._record_failure(shadow, error)
            return
        num_agreeing = await self._lane.codecs.run(
            lambda _: count_agreeing_pixels(mask, primary.classes, result.result, shadow.classes)
        )
        self._counters.inc("segray_compared_images", *labels)
        self._counters.inc("segray_compared_pixels", *labels, by=mask.size)
        self._counters.inc("segray_agreed_pixels", *labels, by=num_agreeing)


def count_agreeing_pixels(mask: Mask, classes: Classes, other_mask: Mask, other_classes: Classes) -> int:
    """Returns the number of pixels with the same class name in two masks (H, W)."""
    id_of_name = {name: class_id for class_id, name in enumerate(classes.names)}
    id_of_other = np.array([id_of_name.get(name, -1) for name in other_classes.names])
    return int((id_of_other[other_mask] == mask).sum())
