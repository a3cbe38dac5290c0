"""Example images of an evaluation (best, median and worst) with truth, prediction and errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segray.config import Config
from segray.data.images import Mask, Pixels, decode_image, decode_mask
from segray.data.preprocess import preprocess
from segray.data.reader import SplitReader
from segray.evaluation.results import ImageScore
from segray.inference.segment import InferenceConfig, segment
from segray.models import checkpoint

NUM_PER_KIND = 3


@dataclass(frozen=True)
class Example:
    """One example image.

    Attributes:
        kind: "worst", "median" or "best".
        score: score of the image.
        image: (H, W, 3) uint8 RGB.
        truth, prediction: (H, W) true and predicted class ids; the truth may contain the ignore id.
    """

    kind: str
    score: ImageScore
    image: Pixels
    truth: Mask
    prediction: Mask


def select_examples(images: Sequence[ImageScore], num_per_kind: int = NUM_PER_KIND) -> list[tuple[str, ImageScore]]:
    """Returns the worst, median and best images without duplicates. `images` is sorted with the worst first."""
    middle = (len(images) - num_per_kind) // 2
    starts = {"worst": 0, "median": middle, "best": len(images) - num_per_kind}
    kinds: dict[int, str] = {}
    for kind, start in starts.items():
        for index in range(max(0, start), min(len(images), max(0, start) + num_per_kind)):
            kinds.setdefault(index, kind)
    return [(kind, images[index]) for index, kind in sorted(kinds.items())]


def segment_examples(folder: Path, config: Config, source: SplitReader, images: Sequence[ImageScore]) -> list[Example]:
    """Selects the example images and segments them again, with the settings of the evaluation.

    Args:
        folder: checkpoint folder.
        config: Config of the model with the settings of the evaluation.
        source: reader of the split.
        images: scores of the images, worst first.
    """
    model = checkpoint.load_model(folder).eval()
    examples = []
    for kind, score in select_examples(images):
        table = source.read([int(source.groups_of_rows([score.row])[0])])
        index = table["row"].to_pylist().index(score.row)
        image, truth = decode_image(table["image"][index].as_py()), decode_mask(table["mask"][index].as_py())
        batch = preprocess(image, config.data.short_side, config.eval.size_multiple)
        ids = segment(model, batch, truth.shape, InferenceConfig.from_config(config))[0].numpy()
        prediction: Mask = ids.astype(np.uint8) if truth.dtype == np.uint8 else ids.astype(np.uint16)
        examples.append(Example(kind, score, image, truth, prediction))
    return examples


def error_overlay(example: Example, ignore_id: int) -> Pixels:
    """Returns an image of the errors (H, W, 3): errors are red on the greyscale image, and ignored pixels are white."""
    grey = example.image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    overlay: NDArray[np.float64] = grey * 0.5 + 60
    incorrect = (example.prediction != example.truth) & (example.truth != ignore_id)
    overlay[incorrect] = overlay[incorrect] * 0.25 + np.array([220, 38, 38]) * 0.75
    overlay[example.truth == ignore_id] = 255
    return overlay.round().clip(0, 255).astype(np.uint8)
