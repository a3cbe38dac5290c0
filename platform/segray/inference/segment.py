"""Segmentation of images at any size: full images or sliding windows, several scales, and flipping.

The model's scores have a fraction of the image's resolution. Windows are blended and passes are averaged at that
resolution. Full-size results are computed in bands of rows, so that the full-size scores of all classes are never
stored at once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from math import ceil
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


@dataclass(frozen=True)
class InferenceConfig:
    """Inference settings.

    Attributes:
        crop: side of the sliding windows in px; defaults to `None`, which processes the full image.
        stride: distance between windows in px.
        windows: number of windows per forward pass.
        scales: scale factors of the image; the probabilities of all scales are averaged.
        flip: whether the mirrored image is also processed at each scale.
        dtype: dtype of the forward pass.
        align: multiple to which the sides are rounded up at each scale.
    """

    crop: int | None = None
    stride: int = 0
    windows: int = 1
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    dtype: torch.dtype = torch.float32
    align: int = 32

    @classmethod
    def from_config(cls, config: Config) -> "InferenceConfig":
        """Returns the inference settings of a Config. By default, the windows have the size of the training crops."""
        settings = config.eval
        crop = (settings.crop or config.data.crop) if settings.mode == "slide" else None
        return cls(
            crop=crop,
            stride=settings.stride or (crop or 0) * 3 // 4,
            windows=settings.windows,
            scales=settings.scales,
            flip=settings.flip,
            dtype=getattr(torch, settings.precision),
            align=settings.align,
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
    ids = _no_ids(maps, size)
    for strip in iter_row_bands(maps, size):
        ids[strip.image, strip.rows] = strip.scores.argmax(dim=0)
    return ids


@torch.inference_mode()
def segment_with_confidence(
    model: nn.Module, images: Tensor, size: tuple[int, int], mode: InferenceConfig = WHOLE_IMAGE
) -> tuple[Tensor, Tensor]:
    """Returns the class ids of `segment` and the probabilities of these classes, (B, H, W) float32."""
    maps = logits_per_pass(model, images, mode)
    ids = _no_ids(maps, size)
    sure = torch.empty((len(images), *size), device=images.device)
    for strip in iter_row_bands(maps, size):
        best = _as_probabilities(strip.scores, maps).max(dim=0)
        sure[strip.image, strip.rows], ids[strip.image, strip.rows] = best.values, best.indices.to(ids.dtype)
    return ids, sure


@torch.inference_mode()
def segment_with_probabilities(
    model: nn.Module, images: Tensor, size: tuple[int, int], mode: InferenceConfig = WHOLE_IMAGE
) -> tuple[Tensor, Tensor]:
    """Returns the class ids of `segment` and the probability of every class, (B, K, H, W) float32."""
    maps = logits_per_pass(model, images, mode)
    ids = _no_ids(maps, size)
    found = torch.empty((len(images), maps[0].shape[1], *size), device=images.device)
    for strip in iter_row_bands(maps, size):
        ids[strip.image, strip.rows] = strip.scores.argmax(dim=0)
        found[strip.image, :, strip.rows] = _as_probabilities(strip.scores, maps)
    return ids, found


def _no_ids(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
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
    cast: AbstractContextManager[object] = nullcontext()
    if mode.dtype != torch.float32:
        cast = torch.autocast(images.device.type, mode.dtype)
    maps = []
    with cast:
        for scale in mode.scales:
            scaled = _scaled(images, scale, mode.align)
            maps.append(_looked_at(model, scaled, mode))
            if mode.flip:
                maps.append(_looked_at(model, scaled.flip(-1), mode).flip(-1))
    return maps


def _scaled(images: Tensor, scale: float, align: int) -> Tensor:
    if scale == 1.0:
        return images
    # 1e-6 prevents floating-point error from rounding up a side that is already a multiple.
    size = [ceil(side * scale / align - 1e-6) * align for side in images.shape[-2:]]
    resized = F.interpolate(images.float(), size, mode="bilinear", antialias=scale < ANTIALIAS_BELOW_SCALE)
    return resized.round_().to(torch.uint8)


def _looked_at(model: nn.Module, images: Tensor, mode: InferenceConfig) -> Tensor:
    def forward(some: Tensor) -> Tensor:
        scores: Tensor = model(some)["seg"]
        return scores.float()

    return (
        forward(images)
        if mode.crop is None
        else sliding_window_logits(forward, images, mode.crop, mode.stride, mode.windows)
    )


def sliding_window_logits(forward: Forward, images: Tensor, crop: int, stride: int, windows: int) -> Tensor:
    """Returns the scores of sliding windows over images (B, 3, H, W), averaged where the windows overlap.

    The last window of a row or column ends at the image border. An image smaller than a window is one window.

    Args:
        forward: model.
        images: images to be processed.
        crop: side of a window in px.
        stride: distance between windows in px.
        windows: number of windows per forward pass.
    """
    tops, lefts = (_starts(side, crop, stride) for side in images.shape[-2:])
    height, width = (min(side, crop) for side in images.shape[-2:])
    total = hits = torch.empty(0)
    places = list(product(range(len(images)), tops, lefts))
    for some in (places[first : first + windows] for first in range(0, len(places), windows)):
        stack = torch.stack([images[at, :, top : top + height, left : left + width] for at, top, left in some])
        scores = forward(stack)
        shrink = height // scores.shape[-2]
        if not len(total):
            whole = [side // shrink for side in images.shape[-2:]]
            total, hits = scores.new_zeros((len(images), scores.shape[1], *whole)), scores.new_zeros(whole)
        for (at, top, left), found in zip(some, scores, strict=True):
            rows, columns = (
                slice(start // shrink, start // shrink + length)
                for start, length in zip((top, left), found.shape[-2:], strict=True)
            )
            total[at, :, rows, columns] += found
            hits[rows, columns] += at == 0
    if not hits.all():
        raise ModelError(f"windows of {crop} px, {stride} px apart, leave pixels out; expected a smaller stride.")
    return total / hits


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
    resizes = [_Resize(one, size) for one in maps]
    for image in range(num_images):
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            found = [resize(image, rows) for resize in resizes]
            yield RowBand(image, rows, found[0] if len(found) == 1 else _mean(found))


def _mean(found: list[Tensor]) -> Tensor:
    total = found[0].softmax(dim=0)
    for scores in found[1:]:
        total += scores.softmax(dim=0)
    return total / len(found)


class _Resize:
    """Computes rows of one map at full size with bilinear interpolation.

    The vertical resize is a product with a narrow matrix; the horizontal resize uses torch. Classes are the innermost
    dimension in memory, which at least halves the time of resizing and comparing them.
    """

    def __init__(self, scores: Tensor, size: tuple[int, int]) -> None:
        self._scores = scores.permute(0, 2, 3, 1).contiguous()  # (B, h, w, K)
        self._size = size
        self._down = bilinear_matrix(size[0], scores.shape[2], like=scores)  # (H, h)

    def __call__(self, image: int, rows: slice) -> Tensor:
        """Returns the scores (K, R, W) of the given rows."""
        near = source_rows(rows, self._size[0], self._down.shape[1])
        some = self._scores[image, near]
        narrow = (self._down[rows, near] @ some.flatten(1)).unflatten(1, some.shape[1:])  # (R, w, K)
        across = (narrow.shape[0], self._size[1])
        return F.interpolate(narrow[None].permute(0, 3, 1, 2), across, mode="bilinear", align_corners=False)[0]
