"""Counting a model's hits and misses, an image at a time; what is counted of each adds up in any order."""

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
    """What is to be counted.

    Attributes:
        num_classes: K.
        ignore_id: mask value that is not counted.
        calibration: whether confidence is, too.
        boundary: widths, in px, of the bands in which boundary IoU is counted.
        trimap: widths, in px, of the bands around the truth's contours in which IoU is counted.
        images: whether each image's own table is kept.
    """

    num_classes: int
    ignore_id: int
    calibration: bool = False
    boundary: tuple[int, ...] = ()
    trimap: tuple[int, ...] = ()
    images: bool = False


@dataclass(frozen=True)
class ImageCounts:
    """The counts of one image, of the classes that occur in it.

    Attributes:
        classes: (n,) ids that are true or predicted.
        table: (n, 3) of those.
    """

    classes: NDArray[np.int64]
    table: ClassCounts

    @classmethod
    def from_confusion(cls, counts: Confusion) -> "ImageCounts":
        """Returns what a confusion matrix (K, K) of one image holds."""
        whole = class_counts(counts)
        classes = np.flatnonzero(whole.any(axis=1))
        return cls(classes, whole[classes])

    def dense(self, num_classes: int) -> ClassCounts:
        """Returns the table (K, 3) of all classes."""
        table = np.zeros((num_classes, 3), np.int64)
        table[self.classes] = self.table
        return table


@dataclass
class Counts:
    """What was counted on some images; sums of these are those of all their images.

    Attributes:
        confusion: (K, K); rows are the truth.
        bins: (NUM_BINS, 3) of the confidence.
        boundary, trimap: (K, 3) by width.
        images: by row number.
    """

    confusion: Confusion
    bins: Bins
    boundary: dict[int, ClassCounts] = field(default_factory=dict)
    trimap: dict[int, ClassCounts] = field(default_factory=dict)
    images: dict[int, ImageCounts] = field(default_factory=dict)

    @classmethod
    def zeros(cls, wanted: CountSpec) -> "Counts":
        """Returns the counts of no image."""
        classes = wanted.num_classes
        return cls(
            confusion=np.zeros((classes, classes), np.int64),
            bins=np.zeros((NUM_BINS, 3), np.int64),
            boundary={width: np.zeros((classes, 3), np.int64) for width in wanted.boundary},
            trimap={width: np.zeros((classes, 3), np.int64) for width in wanted.trimap},
        )

    def merge(self, other: "Counts") -> None:
        """Adds those of other images."""
        self.confusion += other.confusion
        self.bins += other.bins
        for own, theirs in ((self.boundary, other.boundary), (self.trimap, other.trimap)):
            for width, table in theirs.items():
                own[width] += table
        self.images |= other.images


def accumulate_counts(
    model: nn.Module,
    rows: Iterable[dict[str, Tensor]],
    wanted: CountSpec,
    threads: int,
    mode: InferenceConfig = WHOLE_IMAGE,
) -> Counts:
    """Returns the counts of a model over rows, one image a call.

    On a CPU, `threads` images are in flight at once and each forward pass stays on one thread: that is faster than
    many threads on one image, and the counts do not depend on how many threads there were.

    Args:
        model: on its device; put into eval mode here and left so.
        rows: `image` (1, 3, H', W') uint8 at the model's size, `mask` (1, H, W) at its own and `row` (1,), its number.
        wanted: what is to be counted.
        threads: images in flight on a CPU.
        mode: how they are looked at.
    """
    model.eval()
    device = next(model.parameters()).device
    total = Counts.zeros(wanted)
    before = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1

    def count_one(row: dict[str, Tensor]) -> Counts:
        return _count(model, {name: value.to(device) for name, value in row.items()}, wanted, mode)

    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for counts in map_ordered(pool, count_one, rows, workers * 2):
                total.merge(counts)
    finally:
        torch.set_num_threads(before)
    return total


@torch.inference_mode()
def _count(model: nn.Module, row: dict[str, Tensor], wanted: CountSpec, mode: InferenceConfig) -> Counts:
    mask = row["mask"][0]
    size = (mask.shape[0], mask.shape[1])
    counts = Counts.zeros(wanted)
    if wanted.calibration:
        ids, sure = (found[0] for found in segment_with_confidence(model, row["image"], size, mode))
        counts.bins = calibration_bins(ids, sure, mask, wanted.ignore_id).cpu().numpy()
    else:
        ids = segment(model, row["image"], size, mode)[0]
    truth = (ids, mask, wanted.num_classes, wanted.ignore_id)
    counts.confusion = confusion_matrix(*truth).cpu().numpy()
    counts.boundary = {width: boundary_counts(*truth, width).cpu().numpy() for width in wanted.boundary}
    counts.trimap = {width: trimap_counts(*truth, width).cpu().numpy() for width in wanted.trimap}
    if wanted.images:
        counts.images = {int(row["row"]): ImageCounts.from_confusion(counts.confusion)}
    return counts
