"""Losses on logits at a quarter of the mask's size; the upsampling to the mask is the loss's own business."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segray.model.resize import interpolation, source_rows

# Logits at full resolution that are held at once: a few rows in cache on a CPU, enough to fill a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}


def cross_entropy(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    *,
    ignore_id: int,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the cross-entropy of the bilinearly upsampled logits, and the same under the name "ce".

    The sum over valid pixels is divided by `normaliser`. No (B, K, H, W) tensor exists at any time: rows are upsampled,
    scored and differentiated a few at a time, in float32 whatever the logits' dtype.

    Args:
        outputs: "seg": logits (B, K, h, w).
        batch: "mask": class ids (B, H, W), any integer dtype, 0..K-1 or `ignore_id`.
        ignore_id: mask value that is not counted.
        normaliser: what the sum is divided by; the number of valid pixels in this batch (at least 1) if not given.
    """
    logits = outputs["seg"]
    mask = batch["mask"].to(torch.int64)
    if normaliser is None:
        normaliser = (mask != ignore_id).sum().clamp_min(1)
    total: Tensor = _UpsampledCrossEntropy.apply(logits, mask, ignore_id) / normaliser
    return total, {"ce": total.detach()}


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of all valid pixels.

    The loss is one number, so its gradient is computed beside it and only scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total, grad = summed_cross_entropy(logits, mask, ignore_id, with_grad=wanted)
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None


def summed_cross_entropy(
    logits: Tensor, mask: Tensor, ignore_id: int, *, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the float32 sum over valid pixels, and its gradient (B, K, h, w) if asked for.

    Upsampling is a product with two interpolation matrices, (H, h) from the left and (w, W) from the right; its
    transpose takes the gradient back. A block of rows touches only a few source rows.
    """
    num_images, num_classes, height, width = logits.shape
    rows, columns = mask.shape[-2:]
    total = torch.zeros((), device=logits.device)
    left = interpolation(rows, height, like=total)
    right = interpolation(columns, width, like=total).t().contiguous()
    step = max(1, min(rows, CHUNK_ELEMENTS.get(logits.device.type, 1 << 26) // (num_classes * columns)))
    grads = torch.zeros(num_images, height, num_classes, width, device=logits.device) if with_grad else None
    for image in range(num_images):
        source = logits[image].transpose(0, 1).float()  # (h, K, w)
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            source_slice = source_rows(slice(top, bottom), rows, height)
            band = left[top:bottom, source_slice]
            stretched = source[source_slice] @ right  # (rows of the band, K, W)
            scores = (band @ stretched.flatten(1)).unflatten(1, (num_classes, columns))  # (R, K, W)
            part, slope = _score(scores, mask[image, top:bottom], ignore_id, with_grad=with_grad)
            total += part
            if grads is not None and slope is not None:
                back = (band.t() @ slope.flatten(1)).unflatten(1, (num_classes, columns))
                grads[image, source_slice] += back @ right.t()
    return total, None if grads is None else grads.transpose(1, 2).to(logits.dtype)


def _score(scores: Tensor, target: Tensor, ignore_id: int, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the summed cross-entropy of scores (R, K, W) against ids (R, W), and its gradient (R, K, W)."""
    valid = (target != ignore_id).unsqueeze(1)
    index = target.unsqueeze(1).where(valid, 0)
    logs = torch.log_softmax(scores, dim=1)
    total = -(logs.gather(1, index) * valid).sum()
    if not with_grad:
        return total, None
    slope = logs.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=logs.dtype)).mul_(valid)
    return total, slope
