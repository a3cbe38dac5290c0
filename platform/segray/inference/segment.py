"""Segmentation of images at any size: full images or sliding windows, several scales, and flipping.

The model's scores have a fraction of the image's resolution. Windows are blended and passes are averaged at that
resolution. Full-size results are computed in bands of rows, so that the full-size scores of all classes are never
stored at once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segray.config import Config
from segray.core.errors import ModelError
from segray.models.layers import bilinear_matrix, source_rows

# Number of full-size scores per band: fits into the cache of a CPU core, or is large enough to occupy a GPU.
MAX_BAND_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}
ANTIALIAS_BELOW_SCALE = 0.5
"""Below this scale, a bilinear resize without antialiasing would skip pixels."""

Forward = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W) uint8 to scores (B, K, h, w)."""
PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class InferenceConfig:
    """Inference settings.

    Attributes:
        crop: side of the sliding windows in px; defaults to `None`, which processes the full image.
        stride: distance between windows in px.
        window_batch: number of windows per forward pass.
        scales: scale factors of the image; the probabilities of all scales are averaged.
        flip: whether the mirrored image is also processed at each scale.
        dtype: dtype of the forward pass.
        size_multiple: multiple to which the sides are rounded up at each scale.
        before_step: function that is called before each forward pass and each band of rows. An exception that it
            raises ends the segmentation, for example because the result is no longer needed.
    """

    crop: int | None = None
    stride: int = 0
    window_batch: int = 1
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    dtype: torch.dtype = torch.float32
    size_multiple: int = 32
    before_step: Callable[[], object] = _do_nothing

    @classmethod
    def from_config(cls, config: Config) -> "InferenceConfig":
        """Returns the inference settings of a Config. By default, the windows have the size of the training crops."""
        settings = config.eval
        crop = (settings.crop or config.data.crop) if settings.mode == "slide" else None
        return cls(
            crop=crop,
            stride=settings.stride or (crop or 0) * 3 // 4,
            window_batch=settings.window_batch,
            scales=settings.scales,
            flip=settings.flip,
            dtype=PRECISION_DTYPES[settings.precision],
            size_multiple=settings.size_multiple,
        )


WHOLE_IMAGE = InferenceConfig()


class RowBand(NamedTuple):
    """A band of rows of one image at full size.

    Attributes:
        image: index of the image.
        rows: rows of the band.
        scores: (K, R, W) logits, or probabilities if several passes were averaged.
    """

    image: int
    rows: slice
    scores: Tensor


@torch.inference_mode()
def segment(model: nn.Module, images: Tensor, size: tuple[int, int], mode: InferenceConfig = WHOLE_IMAGE) -> Tensor:
    """Returns the class ids (B, H, W) of images (B, 3, H', W') uint8 RGB; uint8 up to 256 classes, else int32.

    Args:
        model: model in eval mode, on the device of the images.
        images: images at the input size of the model.
        size: (H, W) of the result.
        mode: inference settings.
    """
    maps = logits_per_pass(model, images, mode)
    ids = _empty_ids(maps, size)
    for band in iter_row_bands(maps, size):
        mode.before_step()
        ids[band.image, band.rows] = band.scores.argmax(dim=0)
    return ids


@torch.inference_mode()
def segment_with_confidence(
    model: nn.Module, images: Tensor, size: tuple[int, int], mode: InferenceConfig = WHOLE_IMAGE
) -> tuple[Tensor, Tensor]:
    """Returns the class ids of `segment` and the probabilities of these classes, (B, H, W) float32."""
    maps = logits_per_pass(model, images, mode)
    ids = _empty_ids(maps, size)
    confidence = torch.empty((len(images), *size), device=images.device)
    for band in iter_row_bands(maps, size):
        best = _as_probabilities(band.scores, maps).max(dim=0)
        confidence[band.image, band.rows] = best.values
        ids[band.image, band.rows] = best.indices.to(ids.dtype)
    return ids, confidence


@torch.inference_mode()
def segment_with_probabilities(
    model: nn.Module, images: Tensor, size: tuple[int, int], mode: InferenceConfig = WHOLE_IMAGE
) -> tuple[Tensor, Tensor]:
    """Returns the class ids of `segment` and the probability of every class, (B, K, H, W) float32."""
    maps = logits_per_pass(model, images, mode)
    ids = _empty_ids(maps, size)
    probabilities = torch.empty((len(images), maps[0].shape[1], *size), device=images.device)
    for band in iter_row_bands(maps, size):
        ids[band.image, band.rows] = band.scores.argmax(dim=0)
        probabilities[band.image, :, band.rows] = _as_probabilities(band.scores, maps)
    return ids, probabilities


def _empty_ids(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Returns an uninitialised tensor for the class ids (B, H, W) of all images."""
    num_images, num_classes = maps[0].shape[:2]
    dtype = torch.uint8 if num_classes <= 256 else torch.int32
    return torch.empty((num_images, *size), dtype=dtype, device=maps[0].device)


def _as_probabilities(scores: Tensor, maps: list[Tensor]) -> Tensor:
    return scores if len(maps) > 1 else scores.softmax(dim=0)


def logits_per_pass(model: nn.Module, images: Tensor, mode: InferenceConfig) -> list[Tensor]:
    """Returns the scores (B, K, h, w) of every pass over images (B, 3, H', W') uint8.

    The scores of flipped passes are flipped back.
    """
    autocast: AbstractContextManager[object] = nullcontext()
    if mode.dtype != torch.float32:
        autocast = torch.autocast(images.device.type, mode.dtype)
    maps = []
    with autocast:
        for scale in mode.scales:
            scaled = _rescale(images, scale, mode.size_multiple)
            maps.append(_forward_pass(model, scaled, mode))
            if mode.flip:
                maps.append(_forward_pass(model, scaled.flip(-1), mode).flip(-1))
    return maps


def _rescale(images: Tensor, scale: float, size_multiple: int) -> Tensor:
    if scale == 1.0:
        return images
    # 1e-6 prevents floating-point error from rounding up a side that is already a multiple.
    size = [ceil(side * scale / size_multiple - 1e-6) * size_multiple for side in images.shape[-2:]]
    resized = F.interpolate(images.float(), size, mode="bilinear", antialias=scale < ANTIALIAS_BELOW_SCALE)
    return resized.round_().to(torch.uint8)


def _forward_pass(model: nn.Module, images: Tensor, mode: InferenceConfig) -> Tensor:
    def forward(batch: Tensor) -> Tensor:
        mode.before_step()
        scores: Tensor = model(batch)["seg"]
        return scores.float()

    if mode.crop is None:
        return forward(images)
    return sliding_window_logits(forward, images, mode.crop, mode.stride, mode.window_batch)


def sliding_window_logits(forward: Forward, images: Tensor, crop: int, stride: int, window_batch: int) -> Tensor:
    """Returns the scores of sliding windows over images (B, 3, H, W), averaged where the windows overlap.

    The last window of a row or column ends at the image border. An image smaller than a window is one window.

    Args:
        forward: model.
        images: images to be processed.
        crop: side of a window in px.
        stride: distance between windows in px.
        window_batch: number of windows per forward pass.
    """
    tops, lefts = (_starts(side, crop, stride) for side in images.shape[-2:])
    height, width = (min(side, crop) for side in images.shape[-2:])
    total = counts = torch.empty(0)
    windows = list(product(range(len(images)), tops, lefts))
    for batch in (windows[first : first + window_batch] for first in range(0, len(windows), window_batch)):
        crops = [images[image, :, top : top + height, left : left + width] for image, top, left in batch]
        scores = forward(torch.stack(crops))
        output_stride = height // scores.shape[-2]
        if not len(total):
            size = [side // output_stride for side in images.shape[-2:]]
            total, counts = scores.new_zeros((len(images), scores.shape[1], *size)), scores.new_zeros(size)
        for (image, top, left), window_scores in zip(batch, scores, strict=True):
            rows, columns = (
                slice(start // output_stride, start // output_stride + length)
                for start, length in zip((top, left), window_scores.shape[-2:], strict=True)
            )
            total[image, :, rows, columns] += window_scores
            counts[rows, columns] += image == 0
    if not counts.all():
        raise ModelError(f"windows of {crop} px with stride {stride} px do not cover the image; use a smaller stride.")
    return total / counts


def count_windows(size: tuple[int, int], crop: int, stride: int) -> int:
    """Returns the number of sliding windows of an image of size (H, W)."""
    return prod(len(_starts(side, crop, stride)) for side in size)


def _starts(side: int, crop: int, stride: int) -> list[int]:
    last = max(side - crop, 0)
    return sorted({*range(0, last, stride), last})


def iter_row_bands(maps: list[Tensor], size: tuple[int, int]) -> Iterator[RowBand]:
    """Yields bands of rows that cover every image at `size` (H, W).

    The scores are those of one pass, or the mean probabilities of several passes.
    """
    num_images, num_classes = maps[0].shape[:2]
    height, width = size
    step = max(1, MAX_BAND_ELEMENTS.get(maps[0].device.type, 1 << 27) // (num_classes * width))
    resizes = [_RowResize(scores, size) for scores in maps]
    for image in range(num_images):
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            passes = [resize(image, rows) for resize in resizes]
            yield RowBand(image, rows, passes[0] if len(passes) == 1 else _mean_probabilities(passes))


def _mean_probabilities(passes: list[Tensor]) -> Tensor:
    total = passes[0].softmax(dim=0)
    for scores in passes[1:]:
        total += scores.softmax(dim=0)
    return total / len(passes)


class _RowResize:
    """Computes rows of one map at full size with bilinear interpolation.

    The vertical resize is a product with a narrow matrix; the horizontal resize uses torch. Classes are the innermost
    dimension in memory, which at least halves the time of resizing and comparing them.
    """

    def __init__(self, scores: Tensor, size: tuple[int, int]) -> None:
        self._scores = scores.permute(0, 2, 3, 1).contiguous()  # (B, h, w, K)
        self._size = size
        self._row_matrix = bilinear_matrix(size[0], scores.shape[2], like=scores)  # (H, h)

    def __call__(self, image: int, rows: slice) -> Tensor:
        """Returns the scores (K, R, W) of the given rows."""
        sources = source_rows(rows, self._size[0], self._row_matrix.shape[1])
        scores = self._scores[image, sources]
        narrow = (self._row_matrix[rows, sources] @ scores.flatten(1)).unflatten(1, scores.shape[1:])  # (R, w, K)
        size = (narrow.shape[0], self._size[1])
        return F.interpolate(narrow[None].permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)[0]
