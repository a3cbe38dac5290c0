"""What segments a part: in an actor of the cluster, or at once in the command's own process."""

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
    """What is done with every image.

    Attributes:
        predictor: segments it.
        are_upright: whether images are as a dataset stores them.
        outputs: where the results go.
    """

    predictor: Predictor
    are_upright: bool
    outputs: Outputs


def segment_locally(inputs: Inputs, work: BatchTask, device: str) -> ChunkResult:
    """Segments everything in this process, without a cluster; for what is quicker done than one is started."""
    JobProgress(work.outputs.root).require_no_job()
    worker = ChunkSegmenter(work, device, threads=torch.get_num_threads())
    parts = [worker(pictures[0].name, pictures) for unit in inputs.units for _, pictures in unit.chunks(frozenset())]
    return ChunkResult(sum(part.images for part in parts), tuple(line for part in parts for line in part.problems))


class ChunkSegmenter:
    """Segments parts, some images at once.

    Args:
        work: what is done with every image.
        device: of the model.
        at_once: images.
        threads: for each of them; with one, what is found does not depend on how many images there are at once.
    """

    def __init__(self, work: BatchTask, device: str = "cpu", at_once: int = 1, threads: int = 1) -> None:
        self._work, self._at_once, self._threads = work, at_once, threads
        self._predictor = work.predictor.to(device)

    def __call__(self, name: str, part: Sequence[InputImage]) -> ChunkResult:
        """Segments a part and writes the results, as a table of that name if they become one.

        Raises:
            DataError: they cannot be written.
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
        """Returns what is to be written of an image, or why there is nothing."""
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
        except Exception as error:  # such as no memory for this image: thousands of others are not lost for it
            return f"{picture.name}: {type(error).__name__}: {error}"
