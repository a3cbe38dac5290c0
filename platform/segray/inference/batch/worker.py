"""Segmentation of chunks, in an actor of the cluster or in the local process."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from segray.core.concurrency import map_ordered
from segray.core.errors import DataError, ModelError
from segray.data.images import decode_image
from segray.data.normalize import normalize_image
from segray.inference.batch.inputs import InputImage, Inputs
from segray.inference.batch.outputs import ImageOutput, Outputs
from segray.inference.batch.progress import ChunkResult, JobProgress
from segray.inference.predictor import Predictor


@dataclass(frozen=True)
class BatchTask:
    """The task that is applied to every image.

    Attributes:
        predictor: predictor that segments the images.
        are_upright: whether images have the dataset format.
        outputs: destination of the results.
    """

    predictor: Predictor
    are_upright: bool
    outputs: Outputs


def segment_locally(inputs: Inputs, work: BatchTask, device: str) -> ChunkResult:
    """Segments all inputs in this process, without a cluster.

    This is faster for jobs that take less time than the start of a cluster.
    """
    JobProgress(work.outputs.root).require_no_job()
    worker = ChunkSegmenter(work, device, threads=torch.get_num_threads())
    parts = [worker(pictures[0].name, pictures) for unit in inputs.units for _, pictures in unit.chunks(frozenset())]
    return ChunkResult(sum(part.images for part in parts), tuple(line for part in parts for line in part.problems))


class ChunkSegmenter:
    """Segments chunks, several images concurrently.

    Args:
        work: task that is applied to every image.
        device: device of the model.
        at_once: number of concurrent images.
        threads: number of threads per image; with 1, the results do not depend on `at_once`.
    """

    def __init__(self, work: BatchTask, device: str = "cpu", at_once: int = 1, threads: int = 1) -> None:
        self._work, self._at_once, self._threads = work, at_once, threads
        self._predictor = work.predictor.to(device)

    def __call__(self, name: str, part: Sequence[InputImage]) -> ChunkResult:
        """Segments a chunk and writes the results. `name` is the name of the chunk's table for the parquet format.

        Raises:
            DataError: the results cannot be written.
        """
        problems = list[str]()
        count = self._work.outputs.write(name, self._results(part, problems))
        return ChunkResult(count, tuple(problems))

    def _results(self, part: Sequence[InputImage], problems: list[str]) -> Iterator[ImageOutput]:
        with ThreadPoolExecutor(self._at_once, initializer=torch.set_num_threads, initargs=(self._threads,)) as pool:
            for found in map_ordered(pool, self._result, part, self._at_once * 2):
                if isinstance(found, ImageOutput):
                    yield found
                else:
                    problems.append(found)

    def _result(self, picture: InputImage) -> ImageOutput | str:
        """Returns the outputs of an image, or the reason why there are none."""
        if picture.problem:
            return picture.problem
        try:
            stored = picture.encoded
            if not self._work.are_upright:
                stored = normalize_image(stored, "the file").encoded
            image = decode_image(stored)
            if self._work.outputs.probabilities:
                mask, probabilities = self._predictor.predict_with_probabilities(image)
                return self._work.outputs.encode(picture.name, image, mask, probabilities)
            return self._work.outputs.encode(picture.name, image, self._predictor(image))
        except (DataError, ModelError) as error:
            return f"{picture.name}: {error}"
        except Exception as error:  # e.g. out of memory: one image must not fail the job
            return f"{picture.name}: {type(error).__name__}: {error}"
