"""Lanes of a replica: the threads and the queue of small images, and those of large ones."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from segray.data.images import Mask, Pixels
from segray.serving.batcher import AbandonedError, Batcher, ComputeFunction
from segray.serving.fair_queue import FairQueue
from segray.serving.model_version import LoadedModel
from segray.serving.throttle import Throttle

Result = TypeVar("Result")
Size = tuple[int, int]
BatchKey = tuple[LoadedModel, Size]
Check = Callable[[], None]


class CodecThreads:
    """Threads that decode images and encode responses.

    Args:
        name: name of the threads.
        num_threads: number of threads; 1 if they are throttled.
        throttle: delays the calls while urgent work waits; `None` for urgent calls.
    """

    def __init__(self, name: str, num_threads: int, throttle: Throttle | None = None) -> None:
        self._executor = ThreadPoolExecutor(num_threads, name)
        self._throttle = throttle

    async def run(self, function: Callable[[Check], Result]) -> Result:
        """Calls a function in a thread and returns its result.

        Args:
            function: function to call. Its argument is a function that it may call between its steps, and that raises
                `AbandonedError` if the caller was cancelled.
        """
        is_cancelled = threading.Event()

        def check() -> None:
            if is_cancelled.is_set():
                raise AbandonedError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, function, check)
        except asyncio.CancelledError:
            is_cancelled.set()
            raise

    def _call(self, function: Callable[[Check], Result], check: Check) -> Result:
        if self._throttle is None:
            return function(check)
        self._throttle.start(check)
        try:
            return function(check)
        finally:
            self._throttle.stop()


class Lane:
    """Threads that decode, compute and encode images, and the queue of the requests that wait for them.

    Args:
        name: name of the lane, for its threads.
        compute: function that computes a batch.
        num_slots: maximum number of images that are decoded at the same time.
        num_codec_threads: number of threads that decode and encode.
        throttle: delays decoding and encoding while a more urgent lane has work; `None` for the most urgent lane.

    Attributes:
        queue: queue of the requests.
        batcher: computes the decoded images.
        codecs: threads that decode and encode.
    """

    def __init__(
        self,
        name: str,
        compute: ComputeFunction[Pixels, Mask],
        num_slots: int,
        num_codec_threads: int,
        throttle: Throttle | None = None,
    ) -> None:
        self.queue = FairQueue(num_slots)
        self.codecs = CodecThreads(f"{name}-codec", num_codec_threads, throttle)
        thread = ThreadPoolExecutor(1, f"{name}-compute")
        self.batcher: Batcher[Pixels, Mask] = Batcher(compute, _max_batch_size, thread)


def _max_batch_size(key: BatchKey) -> int:
    loaded, size = key
    return loaded.max_batch_size(size)
