"""Lanes of a replica: the threads and the queue of small images, and those of large ones."""

from concurrent.futures import ThreadPoolExecutor

from segray.data.images import Mask, Pixels
from segray.serving.batcher import Batcher, ComputeFunction
from segray.serving.fair_queue import FairQueue
from segray.serving.model_version import LoadedModel

Size = tuple[int, int]
BatchKey = tuple[LoadedModel, Size]


class Lane:
    """Threads that decode, compute and encode images, and the queue of the requests that wait for them.

    Args:
        name: name of the lane, for its threads.
        compute: function that computes a batch.
        num_slots: maximum number of images that are decoded at the same time.
        num_codec_threads: number of threads that decode and encode.

    Attributes:
        queue: queue of the requests.
        batcher: computes the decoded images.
        codec_threads: threads that decode and encode.
    """

    def __init__(
        self, name: str, compute: ComputeFunction[Pixels, Mask], num_slots: int, num_codec_threads: int
    ) -> None:
        self.queue = FairQueue(num_slots)
        self.codec_threads = ThreadPoolExecutor(num_codec_threads, f"{name}-codec")
        thread = ThreadPoolExecutor(1, f"{name}-compute")
        self.batcher: Batcher[Pixels, Mask] = Batcher(compute, _max_batch_size, thread)


def _max_batch_size(key: BatchKey) -> int:
    loaded, size = key
    return loaded.max_batch_size(size)
