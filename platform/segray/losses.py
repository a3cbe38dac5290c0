"""Losses on logits at a quarter of the mask's size; the resizing to the mask is the loss's own business."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segray.errors import DataError
from segray.model import plugins
from segray.model.resize import interpolation, source_rows

# Full-resolution logits that are held at once: a few rows in a CPU core's cache, enough at a time to fill a GPU.
Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}


def cross_entropy(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    *,
    ignore_id: int,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the cross-entropy of the bilinearly resized logits, and the same, detached, under the name "ce".

    No tensor (B, K, H, W) exists at any time: a few rows at a time are resized, scored and differentiated, in
    float32 whatever the logits' dtype. A batch without a valid pixel gives 0, and gradients of 0.

    Args:
        outputs: "seg": logits (B, K, h, w).
        batch: "mask": class ids (B, H, W) of any integer dtype, 0..K-1 or `ignore_id`.
        ignore_id: mask value that is not counted.
        normaliser: what the sum over valid pixels is divided by; if not given, their number in this batch.

    Raises:
        DataError: a mask on the CPU holds an id that is neither a class nor `ignore_id`.
    """
    logits, mask = outputs["seg"], batch["mask"].to(torch.int64)
    if mask.device.type == "cpu":
        _check_ids(mask, logits.shape[1], ignore_id)
    if normaliser is None:
        normaliser = (mask != ignore_id).sum().clamp_min(1)
    summed: Tensor = _SummedCrossEntropy.apply(logits, mask, ignore_id)  # type: ignore[no-untyped-call]
    total = summed / normaliser
    return total, {"ce": total.detach()}


def named(name: str) -> Loss:
    """Returns the loss that a setting names: "cross_entropy", or `module:attribute` of the user's own.

    A loss is called as `cross_entropy` is: with outputs, batch, `ignore_id` and `normaliser`.

    Raises:
        ModelError: it cannot be imported or is no function.
    """
    return plugins.factory("model.loss", name) if plugins.is_reference(name) else cross_entropy


def _check_ids(mask: Tensor, num_classes: int, ignore_id: int) -> None:
    foreign = (mask < 0) | ((mask >= num_classes) & (mask != ignore_id))
    if foreign.any():
        ids = mask[foreign].unique().tolist()
        raise DataError(
            f"mask holds the ids {ids[:5]} in {int(foreign.sum())} pixels; expected 0..{num_classes - 1}, "
            f"or {ignore_id} for ignored pixels; convert the data set again with its true classes."
        )


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over valid pixels. As that is one number, its gradient is made beside it and only scaled backward."""

    @staticmethod
    def forward(ctx: _Context, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        grad = torch.zeros_like(logits, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        with torch.autocast(logits.device.type, enabled=False):
            total = _summed(logits, mask, ignore_id, grad)
        if grad is not None:
            ctx.save_for_backward(grad.to(logits.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None


def _summed(logits: Tensor, mask: Tensor, ignore_id: int, grad: Tensor | None) -> Tensor:
    """Returns the summed cross-entropy; adds its gradient to `grad` (B, K, h, w).

    A resize is a product with an interpolation matrix from the left (H, h) and one from the right (w, W); their
    transposes take the gradient back. A chunk of rows touches few rows of the logits.
    """
    num_images, num_classes, height, width = logits.shape
    rows, columns = mask.shape[1:]
    total = torch.zeros((), device=logits.device)
    left, right = interpolation(rows, height, like=total), interpolation(columns, width, like=total).t().contiguous()
    step = max(1, CHUNK_ELEMENTS.get(logits.device.type, 1 << 27) // (num_classes * columns))
    for image in range(num_images):
        source = logits[image].transpose(0, 1).float()  # (h, K, w)
        for top in range(0, rows, step):
            chunk = slice(top, min(top + step, rows))
            near = source_rows(chunk, rows, height)
            wide = (source[near] @ right).flatten(1)
            scores = (left[chunk, near] @ wide).unflatten(1, (num_classes, columns))  # (R, K, W)
            part, slopes = _score(scores, mask[image, chunk], ignore_id)
            total += part
            if grad is not None:
                back = (left[chunk, near].t() @ slopes.flatten(1)).unflatten(1, (num_classes, columns))
                grad[image, :, near] += (back @ right.t()).transpose(0, 1)
    return total


def _score(scores: Tensor, target: Tensor, ignore_id: int) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy of scores (R, K, W) against ids (R, W), and its gradient (R, K, W)."""
    valid = (target != ignore_id).unsqueeze(1)
    index = target.unsqueeze(1).where(valid, 0)
    logs = torch.log_softmax(scores, dim=1)
    total = -(logs.gather(1, index) * valid).sum()
    slopes = logs.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=logs.dtype)).mul_(valid)
    return total, slopes
