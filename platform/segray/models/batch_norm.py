"""Batch normalisation of the decode head, synchronised over all ranks, on any device and backend."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segray.models.layers import NormContext


class BatchMoments(NamedTuple):
    """Statistics of a batch: number of pixels (), mean (C,) and biased variance (C,)."""

    pixels: Tensor
    mean: Tensor
    variance: Tensor


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the global batch of all ranks.

    The state dict is that of `nn.BatchNorm2d`. torch's SyncBatchNorm rejects CPU tensors. This class needs only two
    small collectives, so it works with both gloo and nccl. The batch sizes of the ranks may differ.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """Returns normalised maps (B, C, h, w).

        In training, the moments are those of the pixels of all ranks. In eval mode, they are the running moments.
        """
        if not self.training or _num_ranks() == 1:
            return super().forward(maps)
        variance, mean = torch.var_mean(_upcast(maps.detach()), dim=(0, 2, 3), correction=0)
        pixels = torch.full_like(mean[0], maps.numel() // maps.shape[1])
        moments = all_reduce_moments(BatchMoments(pixels, mean, variance))
        self.update_running_stats(moments)
        normalized: Tensor = _BatchNormFunction.apply(self.eps, maps, self.weight, self.bias, *moments)  # type: ignore[no-untyped-call]
        return normalized

    @torch.no_grad()
    def update_running_stats(self, moments: BatchMoments) -> None:
        """Updates the running moments with the moments of a batch. The running variance is unbiased."""
        assert self.momentum is not None
        pixels, mean, variance = moments
        unbiased = variance * (pixels / (pixels - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Returns the scale (C,) and the shift (C,) that are equivalent to normalisation by the running moments."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def combine_moments(stacked: BatchMoments) -> BatchMoments:
    """Returns the moments of the union of batches, whose moments are stacked along the first dimension.

    The method is that of Chan et al. A plain sum of squares would lose precision where the mean is large relative to
    the standard deviation.
    """
    counts, means, variances = stacked
    pixels = counts.sum()
    fraction = (counts / pixels).unsqueeze(1)
    mean = (fraction * means).sum(0)
    return BatchMoments(pixels, mean, (fraction * (variances + (means - mean).square())).sum(0))


def all_reduce_moments(local: BatchMoments) -> BatchMoments:
    """Returns the moments of the union of all ranks' batches."""
    if _num_ranks() == 1:
        return local
    packed = torch.cat([local.pixels.view(1), local.mean, local.variance])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, packed)
    stacked = torch.stack(gathered)
    means, variances = stacked[:, 1:].chunk(2, dim=1)
    return combine_moments(BatchMoments(stacked[:, 0], means, variances))


def all_reduce_sum(local: Tensor) -> Tensor:
    """Returns the sum of the tensors of all ranks."""
    total = local.clone()
    if _num_ranks() > 1:
        dist.all_reduce(total)
    return total


def input_gradient(
    moments: BatchMoments, eps: float, weight: Tensor, grad_bias: Tensor, grad_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scale, slope and offset, each (C,): the gradient of an input x is `scale * grad + slope * x + offset`.

    The mean and the variance depend on every pixel of every rank. The function therefore sums the gradients of bias and
    weight over all ranks; `grad_bias` and `grad_weight` are the local values of this rank.
    """
    pixels, mean, variance = moments
    inverse = torch.rsqrt(variance + eps)
    mean_grad, mean_grad_normalized = all_reduce_sum(torch.stack([grad_bias, grad_weight])) / pixels
    scale = weight * inverse
    slope = -scale * inverse * mean_grad_normalized
    return scale, slope, -scale * mean_grad - slope * mean


class _BatchNormFunction(torch.autograd.Function):
    """Normalises maps by the moments of all ranks. The backward pass accounts for the maps of all ranks."""

    @staticmethod
    def forward(ctx: NormContext, eps: float, *tensors: Tensor) -> Tensor:
        maps, weight, bias, pixels, mean, variance = tensors
        ctx.eps = eps
        ctx.save_for_backward(maps, weight, pixels, mean, variance)
        # Batch norm in eval mode performs exactly this arithmetic, in one pass and in the memory layout of the maps.
        return F.batch_norm(maps, mean, variance, weight.to(mean), bias.to(mean), training=False, eps=eps)

    @staticmethod
    def backward(ctx: NormContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, *moment_tensors = ctx.saved_tensors
        moments = BatchMoments(*moment_tensors)
        values, grads_out = _upcast(maps), _upcast(grad)
        normalized = (values - _per_channel(moments.mean)) * _per_channel(torch.rsqrt(moments.variance + ctx.eps))
        grad_bias, grad_weight = grads_out.sum((0, 2, 3)), (grads_out * normalized).sum((0, 2, 3))
        scale, slope, offset = input_gradient(moments, ctx.eps, weight.to(values), grad_bias, grad_weight)
        grad_maps = _per_channel(scale) * grads_out + _per_channel(slope) * values + _per_channel(offset)
        grads = grad_maps.to(maps.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
        return None, *grads, None, None, None


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
