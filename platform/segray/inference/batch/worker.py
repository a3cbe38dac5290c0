"""Segmentation of chunks, in an actor of the cluster or in the local process."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from segray.core.concurrency import map_ordered
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError, ModelError, SegrayError, first_line
from segray.data.images import decode_image
from segray.data.normalize import normalize_image
from segray.inference.batch.inputs import InputImage, Inputs
from segray.inference.batch.outputs import ImageOutput, Outputs
from segray.inference.batch.progress import ChunkResult, JobProgress, merge_results
from segray.inference.predictor import Predictor


@dataclass(frozen=True)
class BatchTask:
    """The task that is applied to every image.

    Attributes:
        predictor: predictor that segments the images.
        are_normalized: whether images have the dataset format.
        outputs: destination of the results.
    """

    predictor: Predictor
    are_normalized: bool
    outputs: Outputs


def segment_locally(inputs: Inputs, task: BatchTask, device: str) -> ChunkResult:
    """Segments all inputs in this process, without a cluster.

    This is faster for jobs that take less time than the start of a cluster.
    """
    JobProgress(task.outputs.root).require_no_job()
    segment_chunk = ChunkSegmenter(task, device, threads=torch.get_num_threads())
    return merge_results(
        segment_chunk(chunk[0].name, chunk) for shard in inputs.shards for _, chunk in shard.chunks(frozenset())
    )


class ChunkSegmenter:
    """Segments chunks, several images concurrently.

    Args:
        task: task that is applied to every image.
        device: device of the model.
        concurrency: number of concurrent images.
        threads: number of threads per image; with 1, the results do not depend on `concurrency`.
    """

    def __init__(self, task: BatchTask, device: str = "cpu", concurrency: int = 1, threads: int = 1) -> None:
        self._task, self._concurrency, self._threads = task, concurrency, threads
        self._predictor = task.predictor.to(device)

    def __call__(self, name: str, chunk: Sequence[InputImage]) -> ChunkResult:
        """Segments a chunk and writes the results. `name` is the name of the chunk's table for the parquet format.

        Raises:
            DataError: the results cannot be written.
            SegrayError: an image could not be segmented for a reason other than the image.
        """
        problems = list[str]()
        count = self._task.outputs.write(name, self._results(chunk, problems))
        return ChunkResult(count, tuple(problems))

    def _results(self, chunk: Sequence[InputImage], problems: list[str]) -> Iterator[ImageOutput]:
        """Yields the outputs of the images. An image that exhausts memory is segmented again, alone, after the others.

        Raises:
            SegrayError: an image could not be segmented for a reason other than the image.
        """
        failed = list[InputImage]()
        with ThreadPoolExecutor(
            self._concurrency, initializer=torch.set_num_threads, initargs=(self._threads,)
        ) as pool:
            results = map_ordered(pool, self._segment, chunk, self._concurrency * 2)
            for image, result in zip(chunk, results, strict=True):
                if isinstance(result, ImageOutput):
                    yield result
                elif isinstance(result, MemoryExhausted):
                    failed.append(image)
                else:
                    problems.append(result)
            for image in failed:
                torch.cuda.empty_cache()  # does nothing without a GPU
                result = pool.submit(self._segment, image).result()
                if not isinstance(result, ImageOutput):
                    raise SegrayError(
                        f"{image.name} exhausts the memory of the worker, although no other image is segmented there "
                        f"at that time ({result}); use a node with more memory, or another --out with "
                        "--eval.mode slide or without this image."
                    )
                yield result

    def _segment(self, image: InputImage) -> "ImageOutput | MemoryExhausted | str":
        """Returns the outputs of an image, or the reason why there are none if the reason is the image.

        Raises:
            SegrayError: the reason is neither the image nor its memory. All other images might fail in the same way.
        """
        if image.problem:
            return image.problem
        try:
            encoded = image.encoded
            if not self._task.are_normalized:
                encoded = normalize_image(encoded, "the file").encoded
            pixels = decode_image(encoded)
            if self._task.outputs.probabilities:
                mask, probabilities = self._predictor.predict_with_probabilities(pixels)
                return self._task.outputs.encode(image.name, pixels, mask, probabilities)
            return self._task.outputs.encode(image.name, pixels, self._predictor(pixels))
        except Exception as error:
            if is_out_of_memory(error):
                return MemoryExhausted(f"{type(error).__name__}: {first_line(error)}")
            if isinstance(error, (DataError, ModelError)):
                return f"{image.name}: {error}"
            raise SegrayError(
                f"{image.name} cannot be segmented ({type(error).__name__}: {first_line(error)}), which is not a fault "
                "of the image; correct the cause, such as a defective device; the same command resumes the job."
            ) from error


class MemoryExhausted(str):
    """The message of an error that reports exhausted memory. The error itself would keep its tensors alive."""
