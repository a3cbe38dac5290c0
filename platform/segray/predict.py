"""From a checkpoint and an image to a mask: the same path for validation, evaluation and serving."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segray import checkpoint
from segray.classes import Classes
from segray.config import Config
from segray.data.augment.sizes import fit_to_model
from segray.data.images import Mask
from segray.metrics import confusion


@torch.inference_mode()
def segment(model: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns class ids (B, H, W) int64 of images (B, 3, H', W') uint8 RGB, at `size` (H, W)."""
    logits = model(images)["seg"].float()
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def count(
    model: nn.Module, rows: Iterable[dict[str, Tensor]], num_classes: int, ignore_id: int, threads: int
) -> Tensor:
    """Returns the confusion counts (K, K) int64, on the CPU, of a model over rows, one image a call.

    On a CPU, `threads` images are in flight at once and each forward pass stays on one thread: that is faster than
    many threads on one image, and the counts do not depend on how many threads there were.

    Args:
        model: on its device; put into eval mode here and left so.
        rows: `image` (1, 3, H', W') uint8 at the model's size and `mask` (1, H, W) at its own.
        num_classes: K.
        ignore_id: mask value that is not counted.
        threads: images in flight on a CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def count_one(row: dict[str, Tensor]) -> Tensor:
        mask = row["mask"].to(device)
        found = segment(model, row["image"].to(device), (mask.shape[-2], mask.shape[-1]))
        return confusion(found, mask, num_classes, ignore_id).cpu()

    before = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for counts in _in_flight(pool, count_one, rows, workers * 2):
                total += counts
    finally:
        torch.set_num_threads(before)
    return total


def _in_flight(pool: ThreadPoolExecutor, function: Any, rows: Iterable[Any], most: int) -> Iterator[Any]:
    """Yields function(row) in order, at most `most` rows ahead, so that memory stays flat."""
    waiting: list[Any] = []
    for row in rows:
        waiting.append(pool.submit(function, row))
        if len(waiting) >= most:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


class Predictor:
    """Segments images with the model of a checkpoint folder.

    Attributes:
        config: what the model was trained with; the image is resized as it was for validation.
        classes: what the ids in a mask mean.
    """

    config: Config
    classes: Classes

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        folder = Path(folder)
        self._model = checkpoint.load_model(folder).to(device)
        self._device = device
        self.config = checkpoint.load_config(folder)
        self.classes = checkpoint.load_classes(folder)

    def __call__(self, image: NDArray[np.uint8]) -> Mask:
        """Returns class ids (H, W), uint8 below 256 classes, else uint16, of an RGB image (H, W, 3) uint8."""
        fitted = fit_to_model(image, self.config.data.short_side, self.config.eval.align)
        images = torch.from_numpy(fitted).permute(2, 0, 1)[None].to(self._device)  # (1, 3, H', W')
        found = segment(self._model, images, (image.shape[0], image.shape[1]))[0].cpu().numpy()
        return found.astype(np.uint8) if self.classes.num_classes < 256 else found.astype(np.uint16)
