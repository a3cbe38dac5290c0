"""Sums of pixel losses on logits at a quarter of the mask size, without a full-size copy of the logits.

A few rows at a time are resized, scored and differentiated, at least in float32 for any dtype of the logits.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segray.models.layers import AutogradContext, bilinear_matrix, source_rows

# Full-resolution logits held at once: few enough for the cache of a CPU core, enough to use a GPU fully.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}

ChunkLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from log-probabilities (R, K, W), class ids (R, 1, W) and a valid mask (R, 1, W) to the summed loss of the
valid pixels and its gradient with respect to the logits (R, K, W). Ids of ignored pixels are 0. The function may modify
the log-probabilities in place."""


class RowChunk(NamedTuple):
    """Some rows of one image at full resolution.

    Attributes:
        image: index of the image.
        rows: rows R of the mask.
        near: rows of the logits used for the interpolation.
        left: (R, near) interpolation matrix applied from the left.
        logs: (R, K, W) log-probabilities.
    """

    image: int
    rows: slice
    near: slice
    left: Tensor
    logs: Tensor


def pixel_loss_sum(logits: Tensor, mask: Tensor, ignore_id: int, score: ChunkLoss) -> Tensor:
    """Returns the sum of a loss over the valid pixels. The sum is differentiable once.

    Args:
        logits: (B, K, h, w), any floating dtype.
        mask: (B, H, W) int64 class ids, or `ignore_id`.
        ignore_id: mask value to exclude.
        score: function that computes the loss of some rows and its gradient.
    """
    total: Tensor = _PixelLossSum.apply(logits, mask, ignore_id, score)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def true_class_log_probs(logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
    """Returns the log-probabilities (B, H, W) of the true classes; 0 at ignored pixels."""
    log_probs = torch.zeros(mask.shape, dtype=_at_least_float32(logits), device=mask.device)
    with torch.autocast(logits.device.type, enabled=False):
        for chunk in _chunks(logits, mask):
            target = mask[chunk.image, chunk.rows].unsqueeze(1)
            valid = target != ignore_id
            log_probs[chunk.image, chunk.rows] = (chunk.logs.gather(1, target.where(valid, 0)) * valid).squeeze(1)
    return log_probs


class LossContext(AutogradContext, Protocol):
    """The context of the sum of a loss.

    Attributes:
        dtype: dtype of the logits.
    """

    dtype: torch.dtype


class _PixelLossSum(torch.autograd.Function):
    """Sum of a loss over the valid pixels.

    The sum is a scalar, so the forward pass already computes its gradient, and the backward pass only scales it. The
    gradient is stored at least in float32: the gradient of the sum may exceed the range of float16, although that of
    the normalised loss does not.
    """

    @staticmethod
    def forward(ctx: LossContext, logits: Tensor, mask: Tensor, ignore_id: int, score: ChunkLoss) -> Tensor:
        grad = torch.zeros_like(logits, dtype=_at_least_float32(logits)) if ctx.needs_input_grad[0] else None
        with torch.autocast(logits.device.type, enabled=False):
            total = _sum_chunks(logits, mask, ignore_id, score, grad)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: LossContext, grad_total: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return (grad * grad_total).to(ctx.dtype), None, None, None


def _sum_chunks(logits: Tensor, mask: Tensor, ignore_id: int, score: ChunkLoss, grad: Tensor | None) -> Tensor:
    """Returns the summed loss and adds its gradient to `grad` (B, K, h, w).

    A resize multiplies by an interpolation matrix (H, h) from the left and by another (w, W) from the right. The
    gradient is multiplied by their transposes. A chunk of rows depends on few rows of the logits.
    """
    total = torch.zeros((), device=logits.device, dtype=_at_least_float32(logits))
    columns_back = bilinear_matrix(mask.shape[2], logits.shape[3], like=total)
    for chunk in _chunks(logits, mask):
        target = mask[chunk.image, chunk.rows].unsqueeze(1)
        valid = target != ignore_id
        chunk_loss, logit_grad = score(chunk.logs, target.where(valid, 0), valid)
        total += chunk_loss
        if grad is not None:
            few_rows = (chunk.left.t() @ logit_grad.flatten(1)).unflatten(1, logit_grad.shape[1:])
            grad[chunk.image, :, chunk.near] += (few_rows @ columns_back).transpose(0, 1)
    return total


def _chunks(logits: Tensor, mask: Tensor) -> Iterator[RowChunk]:
    num_images, num_classes, height, width = logits.shape
    rows, columns = mask.shape[1:]
    like = torch.empty((), device=logits.device, dtype=_at_least_float32(logits))
    left, right = bilinear_matrix(rows, height, like), bilinear_matrix(columns, width, like).t().contiguous()
    step = max(1, CHUNK_ELEMENTS.get(logits.device.type, 1 << 27) // (num_classes * columns))
    for image in range(num_images):
        source = logits[image].transpose(0, 1).to(like.dtype)  # (h, K, w)
        for top in range(0, rows, step):
            selected = slice(top, min(top + step, rows))
            near = source_rows(selected, rows, height)
            full_width = (source[near] @ right).flatten(1)
            scores = (left[selected, near] @ full_width).unflatten(1, (num_classes, columns))  # (R, K, W)
            yield RowChunk(image, selected, near, left[selected, near], torch.log_softmax(scores, dim=1))


def _at_least_float32(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
