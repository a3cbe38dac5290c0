"""Lanes of a replica: the threads and the queue of small images, and those of large ones."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from segray.data.images import Mask, Pixels
from segray.serving.batcher import Batcher, ComputeFunction
from segray.serving.fair_queue import FairQueue
from segray.serving.model_version import LoadedModel

BACKGROUND_NICENESS = 10
"""Niceness of the threads of large images. They use the time that small images leave, and about a tenth under load."""

Size = tuple[int, int]
BatchKey = tuple[LoadedModel, Size]


class Lane:
    """Threads that decode, compute and encode images, and the queue of the requests that wait for them.

    Args:
        name: name of the lane, for its threads.
        compute: function that computes a batch.
        num_slots: maximum number of images that are decoded at the same time.
        num_codec_threads: number of threads that decode and encode.
        is_background: whether the threads have a low priority.

    Attributes:
        queue: queue of the requests.
        batcher: computes the decoded images.
        codec_threads: threads that decode and encode.
    """

    def __init__(
        self,
        name: str,
        compute: ComputeFunction[Pixels, Mask],
        num_slots: int,
        num_codec_threads: int,
        *,
        is_background: bool,
    ) -> None:
        initializer = _lower_priority if is_background else None
        self.queue = FairQueue(num_slots)
        self.codec_threads = ThreadPoolExecutor(num_codec_threads, f"{name}-codec", initializer)
        thread = ThreadPoolExecutor(1, f"{name}-compute", initializer)
        self.batcher: Batcher[Pixels, Mask] = Batcher(compute, _max_batch_size, thread)


def _max_batch_size(key: BatchKey) -> int:
    loaded, size = key
    return loaded.max_batch_size(size)


def _lower_priority() -> None:
    """Lowers the priority of the current thread. On systems other than Linux, a thread has no priority of its own."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
