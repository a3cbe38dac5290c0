"""Counts of a model's correct and incorrect predictions, image by image. Counts of images add up in any order."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segray.core.concurrency import map_ordered
from segray.evaluation.metrics.boundary import boundary_counts, trimap_counts
from segray.evaluation.metrics.calibration import NUM_BINS, Bins, calibration_bins
from segray.evaluation.metrics.confusion import ClassCounts, Confusion, class_counts, confusion_matrix
from segray.inference.segment import WHOLE_IMAGE, InferenceConfig, segment, segment_with_confidence


@dataclass(frozen=True)
class CountSpec:
    """Specification of the counts.

    Attributes:
        num_classes: K.
        ignore_id: mask value of pixels that are not counted.
        calibration: whether the confidence is counted.
        boundary: widths in px of the bands for boundary IoU.
        trimap: widths in px of the bands around the contours of the truth in which IoU is computed.
        images: whether the table of each image is kept.
    """

    num_classes: int
    ignore_id: int
    calibration: bool = False
    boundary: tuple[int, ...] = ()
    trimap: tuple[int, ...] = ()
    images: bool = False


@dataclass(frozen=True)
class ImageCounts:
    """The counts of one image, for the classes that occur in it.

    Attributes:
        classes: (n,) ids of classes that are true or predicted.
        table: (n, 3) counts of these classes.
    """

    classes: NDArray[np.int64]
    table: ClassCounts

    @classmethod
    def from_confusion(cls, counts: Confusion) -> "ImageCounts":
        """Returns the counts of the confusion matrix (K, K) of one image."""
        table = class_counts(counts)
        classes = np.flatnonzero(table.any(axis=1))
        return cls(classes, table[classes])

    def dense(self, num_classes: int) -> ClassCounts:
        """Returns the table (K, 3) of all classes."""
        table = np.zeros((num_classes, 3), np.int64)
        table[self.classes] = self.table
        return table


@dataclass
class Counts:
    """Counts over a set of images. The sum of two such objects is the counts of both sets.

    Attributes:
        confusion: (K, K) confusion matrix; rows are the truth.
        bins: (NUM_BINS, 3) confidence bins.
        boundary, trimap: (K, 3) tables by width.
        images: counts of each image, by row number.
    """

    confusion: Confusion
    bins: Bins
    boundary: dict[int, ClassCounts] = field(default_factory=dict)
    trimap: dict[int, ClassCounts] = field(default_factory=dict)
    images: dict[int, ImageCounts] = field(default_factory=dict)

    @classmethod
    def zeros(cls, spec: CountSpec) -> "Counts":
        """Returns the counts of zero images."""
        num_classes = spec.num_classes
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64),
            bins=np.zeros((NUM_BINS, 3), np.int64),
            boundary={width: np.zeros((num_classes, 3), np.int64) for width in spec.boundary},
            trimap={width: np.zeros((num_classes, 3), np.int64) for width in spec.trimap},
        )

    def merge(self, other: "Counts") -> None:
        """Adds the counts of other images."""
        self.confusion += other.confusion
        self.bins += other.bins
        for tables, other_tables in ((self.boundary, other.boundary), (self.trimap, other.trimap)):
            for width, table in other_tables.items():
                tables[width] += table
        self.images |= other.images


def accumulate_counts(
    model: nn.Module,
    rows: Iterable[dict[str, Tensor]],
    spec: CountSpec,
    threads: int,
    mode: InferenceConfig = WHOLE_IMAGE,
) -> Counts:
    """Returns the counts of a model over rows, one image per forward pass.

    On a CPU, `threads` images are processed concurrently and each forward pass uses one thread. This is faster than
    many threads per image, and the counts do not depend on the number of threads.

    Args:
        model: model on its device; it is set to eval mode and stays in it.
        rows: rows with `image` (1, 3, H', W') uint8 at the model's input size, `mask` (1, H, W) at the original size
            and `row` (1,), the row number.
        spec: specification of the counts.
        threads: number of concurrent images on a CPU.
        mode: inference settings.
    """
    model.eval()
    device = next(model.parameters()).device
    total = Counts.zeros(spec)
    num_threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1

    def count_image(row: dict[str, Tensor]) -> Counts:
        return _count_image(model, {name: value.to(device) for name, value in row.items()}, spec, mode)

    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for counts in map_ordered(pool, count_image, rows, workers * 2):
                total.merge(counts)
    finally:
        torch.set_num_threads(num_threads)
    return total


@torch.inference_mode()
def _count_image(model: nn.Module, row: dict[str, Tensor], spec: CountSpec, mode: InferenceConfig) -> Counts:
    mask = row["mask"][0]
    size = (mask.shape[0], mask.shape[1])
    counts = Counts.zeros(spec)
    if spec.calibration:
        ids, confidence = (output[0] for output in segment_with_confidence(model, row["image"], size, mode))
        counts.bins = calibration_bins(ids, confidence, mask, spec.ignore_id).cpu().numpy()
    else:
        ids = segment(model, row["image"], size, mode)[0]
    args = (ids, mask, spec.num_classes, spec.ignore_id)
    counts.confusion = confusion_matrix(*args).cpu().numpy()
    counts.boundary = {width: boundary_counts(*args, width).cpu().numpy() for width in spec.boundary}
    counts.trimap = {width: trimap_counts(*args, width).cpu().numpy() for width in spec.trimap}
    if spec.images:
        counts.images = {int(row["row"]): ImageCounts.from_confusion(counts.confusion)}
    return counts
