"""The final part of the decode head: sum of resized levels, batch norm, ReLU and classifier.

The sum has E channels at a quarter of the image resolution. It is the largest map of the model, and every operation on
it is memory-bound. On a CPU, the sum is therefore computed, normalised and classified in tiles of a few rows that fit
into the cache. Inference never stores the complete sum. Training stores one copy of it, where plain autograd stores
three.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segray.models.batch_norm import (
    BatchMoments,
    GlobalBatchNorm2d,
    all_reduce_moments,
    combine_moments,
    input_gradient,
)
from segray.models.layers import NormContext
from segray.models.segformer.tiling import PyramidLevels, TiledLevelSum, should_tile

# Gradient with respect to a ReLU's input, computed from the gradient of its output and from its output.
rectified = torch.ops.aten.threshold_backward


def fused_classify(levels: PyramidLevels, norm: GlobalBatchNorm2d, classifier: Tensor, bias: Tensor) -> Tensor:
    """Returns the logits (B, h, w, K) of the normalised and rectified sum of the levels.

    Args:
        levels: levels whose sum has the shape (B, h, w, E).
        norm: batch norm of E channels. In eval mode it is already folded into the levels and is not applied.
        classifier: one matrix (K, E), or one matrix per image (B, K, E).
        bias: classifier bias (K,).
    """
    is_tiled = should_tile(levels.fine)
    classifier = classifier.expand(levels.fine.shape[0], *classifier.shape[-2:])
    if is_tiled and norm.training:
        return _train_tiled(levels, norm, classifier, bias)
    if is_tiled and not torch.is_grad_enabled():
        return _infer_tiled(levels, classifier, bias)
    total = add_resized(F.linear(levels.fine, levels.weight), levels.coarse)
    if norm.training:
        total = norm(total.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    scores = torch.baddbmm(bias, F.relu(total).flatten(1, 2), classifier.mT)  # (B, h*w, K)
    return scores.view(*total.shape[:3], -1)


def add_resized(finest: Tensor, coarser: Sequence[Tensor]) -> Tensor:
    """Returns the map (B, h, w, E) plus the maps (B, h_i, w_i, E), each resized bilinearly to (h, w)."""
    size = finest.shape[1:3]
    for level in coarser:
        resized = F.interpolate(level.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
        finest = finest + resized.permute(0, 2, 3, 1)
    return finest


def _infer_tiled(levels: PyramidLevels, classifier: Tensor, bias: Tensor) -> Tensor:
    tiles = TiledLevelSum(levels)
    logits = levels.fine.new_empty(*levels.fine.shape[:3], len(bias))
    for image, rows in tiles:
        out = logits[image, rows].flatten(0, 1)
        torch.addmm(bias, tiles.forward_tile(image, rows).relu_(), classifier[image].t(), out=out)
    return logits


def _train_tiled(levels: PyramidLevels, norm: GlobalBatchNorm2d, classifier: Tensor, bias: Tensor) -> Tensor:
    fine, weight, coarse = levels
    tensors = fine, weight, norm.weight, norm.bias, classifier, bias, *coarse
    logits: Tensor
    logits, *moments = _FusedHeadFunction.apply(norm.eps, *tensors)  # type: ignore[no-untyped-call]
    norm.update_running_stats(BatchMoments(*moments))
    return logits


class _FusedHeadFunction(torch.autograd.Function):
    """Logits of the normalised, rectified sum of levels. Only the sum itself is saved for the backward pass."""

    @staticmethod
    def forward(ctx: NormContext, eps: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        fine, weight, norm_weight, norm_bias, classifier, bias, *coarse = tensors
        tiles = TiledLevelSum(PyramidLevels(fine, weight, coarse))
        total = fine.new_empty(*fine.shape[:3], len(weight))
        parts = []
        for image, rows in tiles:
            parts.append(_moments(tiles.forward_tile(image, rows, out=total[image, rows].flatten(0, 1))))
        moments = all_reduce_moments(
            combine_moments(BatchMoments(*(torch.stack(column) for column in zip(*parts, strict=True))))
        )
        scale, shift = _scale_and_shift(moments, eps, norm_weight, norm_bias)
        logits = fine.new_empty(*fine.shape[:3], len(bias))
        for image, rows in tiles:
            active = torch.addcmul(shift, total[image, rows].flatten(0, 1), scale).relu_()
            torch.addmm(bias, active, classifier[image].t(), out=logits[image, rows].flatten(0, 1))
        ctx.eps = eps
        ctx.save_for_backward(total, *moments, *tensors)
        ctx.mark_non_differentiable(*moments)
        return logits, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: NormContext, grad_logits: Tensor, *_moments: Tensor) -> tuple[Tensor | None, ...]:
        total, pixels, mean, variance, *tensors = ctx.saved_tensors
        fine, weight, norm_weight, norm_bias, classifier, _bias, *coarse = tensors
        moments = BatchMoments(pixels, mean, variance)
        tiles = TiledLevelSum(PyramidLevels(fine, weight, coarse))
        scale, shift = _scale_and_shift(moments, ctx.eps, norm_weight, norm_bias)
        grad_logits = grad_logits.contiguous()
        grad_bias, grad_product = torch.zeros_like(norm_bias), torch.zeros_like(norm_weight)
        grad_classifier = torch.zeros_like(classifier)
        for image, rows in tiles:
            tile, grad = total[image, rows].flatten(0, 1), grad_logits[image, rows].flatten(0, 1)
            active = torch.addcmul(shift, tile, scale).relu_()
            grad_classifier[image].addmm_(grad.t(), active)
            grad_sum = rectified(grad @ classifier[image], active, 0)
            grad_bias += grad_sum.sum(0)
            grad_product += grad_sum.mul_(tile).sum(0)
        grad_weight = (grad_product - mean * grad_bias) * torch.rsqrt(variance + ctx.eps)
        scale_in, slope, offset = input_gradient(moments, ctx.eps, norm_weight, grad_bias, grad_weight)
        level_grads = tiles.zero_grads()
        for image, rows in tiles:
            tile, grad = total[image, rows].flatten(0, 1), grad_logits[image, rows].flatten(0, 1)
            active = torch.addcmul(shift, tile, scale).relu_()
            grad_sum = rectified(grad @ classifier[image], active, 0).mul_(scale_in)
            tiles.backward_tile(image, rows, grad_sum.addcmul_(tile, slope).add_(offset), level_grads)
        norms = grad_weight, grad_bias
        heads = grad_classifier, grad_logits.sum((0, 1, 2))
        return None, level_grads.fine, level_grads.weight, *norms, *heads, *level_grads.coarse


def _scale_and_shift(moments: BatchMoments, eps: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight * torch.rsqrt(moments.variance + eps)
    return scale, bias - moments.mean * scale


def _moments(tile: Tensor) -> BatchMoments:
    mean = tile.mean(0)
    return BatchMoments(tile.new_tensor(len(tile)), mean, (tile - mean).square_().mean(0))
