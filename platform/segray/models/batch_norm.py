"""Batch normalisation of the decode head: one batch over all ranks, on any device and backend."""

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class BatchMoments(NamedTuple):
    """What a batch norm knows of its batch: number of pixels (), mean (C,) and biased variance (C,)."""

    pixels: Tensor
    mean: Tensor
    variance: Tensor


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is the global one while several ranks train together.

    The state dict is that of `nn.BatchNorm2d`. torch's own SyncBatchNorm refuses CPU tensors; this one needs only
    two small collectives, so gloo and nccl both serve. Ranks may hold batches of different sizes.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (B, C, h, w) normalised over the pixels of all ranks or, in eval, by the running moments."""
        if not self.training or _num_ranks() == 1:
            return super().forward(maps)
        variance, mean = torch.var_mean(_precise(maps.detach()), dim=(0, 2, 3), correction=0)
        pixels = torch.full_like(mean[0], maps.numel() // maps.shape[1])
        moments = all_reduce_moments(BatchMoments(pixels, mean, variance))
        self.update_running_stats(moments)
        normed: Tensor = _Normalise.apply(self.eps, maps, self.weight, self.bias, *moments)  # type: ignore[no-untyped-call]
        return normed

    @torch.no_grad()
    def update_running_stats(self, moments: BatchMoments) -> None:
        """Moves the running moments towards those of a batch; the running variance is the unbiased one."""
        assert self.momentum is not None
        pixels, mean, variance = moments
        unbiased = variance * (pixels / (pixels - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Returns the scale (C,) and shift (C,) that normalisation by the running moments comes to."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def combine_moments(parts: BatchMoments) -> BatchMoments:
    """Returns the moments of the union of batches whose moments are stacked in the first dimension.

    See: Chan et al.; a plain sum of squares would lose its digits where the mean is large beside the deviation.
    """
    counts, means, variances = parts
    pixels = counts.sum()
    share = (counts / pixels).unsqueeze(1)
    mean = (share * means).sum(0)
    return BatchMoments(pixels, mean, (share * (variances + (means - mean).square())).sum(0))


def all_reduce_moments(mine: BatchMoments) -> BatchMoments:
    """Returns the moments of all ranks' batches together."""
    if _num_ranks() == 1:
        return mine
    packed = torch.cat([mine.pixels.view(1), mine.mean, mine.variance])
    everyone = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, packed)
    stacked = torch.stack(everyone)
    means, variances = stacked[:, 1:].chunk(2, dim=1)
    return combine_moments(BatchMoments(stacked[:, 0], means, variances))


def all_reduce_sum(mine: Tensor) -> Tensor:
    """Returns the sum of all ranks' tensors."""
    total = mine.clone()
    if _num_ranks() > 1:
        dist.all_reduce(total)
    return total


def input_gradient(
    moments: BatchMoments, eps: float, weight: Tensor, grad_bias: Tensor, grad_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (C,) scale, slope and offset: the gradient of an input x is `scale * grad + slope * x + offset`.

    Mean and variance are functions of every pixel of every rank, hence the sums over ranks of the gradients of
    bias and weight, which are given as this rank has them.
    """
    pixels, mean, variance = moments
    inverse = torch.rsqrt(variance + eps)
    mean_grad, mean_grad_normed = all_reduce_sum(torch.stack([grad_bias, grad_weight])) / pixels
    scale = weight * inverse
    slope = -scale * inverse * mean_grad_normed
    return scale, slope, -scale * mean_grad - slope * mean


class _BatchNormContext(Protocol):
    eps: float
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Normalise(torch.autograd.Function):
    """Normalises maps by the moments of all ranks, whose backward goes to all ranks' maps."""

    @staticmethod
    def forward(ctx: _BatchNormContext, eps: float, *tensors: Tensor) -> Tensor:
        maps, weight, bias, pixels, mean, variance = tensors
        ctx.eps = eps
        ctx.save_for_backward(maps, weight, pixels, mean, variance)
        # Evaluation-mode batch norm is exactly this arithmetic, in one pass and in the maps' own layout.
        return F.batch_norm(maps, mean, variance, weight.to(mean), bias.to(mean), training=False, eps=eps)

    @staticmethod
    def backward(ctx: _BatchNormContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, *rest = ctx.saved_tensors
        moments = BatchMoments(*rest)
        values, slopes = _precise(maps), _precise(grad)
        normed = (values - _spread(moments.mean)) * _spread(torch.rsqrt(moments.variance + ctx.eps))
        grad_bias, grad_weight = slopes.sum((0, 2, 3)), (slopes * normed).sum((0, 2, 3))
        scale, slope, offset = input_gradient(moments, ctx.eps, weight.to(values), grad_bias, grad_weight)
        grad_maps = _spread(scale) * slopes + _spread(slope) * values + _spread(offset)
        grads = grad_maps.to(maps.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
        return None, *grads, None, None, None


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _spread(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
