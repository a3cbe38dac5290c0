"""Batch normalisation of the decode head: one batch over all ranks, on any device and backend."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is the global one while several ranks train together.

    The state dict is that of `nn.BatchNorm2d`. torch's own SyncBatchNorm refuses CPU tensors; this one needs only
    two small collectives, so gloo and nccl both serve. Ranks may hold batches of different sizes.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (B, C, h, w) normalised over the images and pixels of all ranks, or by the running figures."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(maps)
        mean, variance, count = _global_moments(maps.detach())
        self._track(mean, variance, count)
        normed: Tensor = _Normalise.apply(maps, self.weight, self.bias, mean, variance, count, self.eps)
        return normed

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def _global_moments(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean (C,), biased variance (C,) and pixel count () over all ranks, in float32.

    Every rank's own moments are gathered and joined (Chan et al.), because a plain sum of squares loses its digits
    where the mean is large beside the deviation.
    """
    variance, mean = torch.var_mean(maps.float(), dim=(0, 2, 3), correction=0)
    count = maps.new_full((1,), maps.numel() // maps.shape[1], dtype=torch.float32)
    mine = torch.cat([count, mean, variance])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    counts, means, variances = torch.stack(everyone).split([1, mean.numel(), mean.numel()], dim=1)
    share = counts / counts.sum()
    joint_mean = (share * means).sum(0)
    joint_variance = (share * (variances + (means - joint_mean).square())).sum(0)
    return joint_mean, joint_variance, counts.sum()


class _Normalise(torch.autograd.Function):
    """Scales maps by given global moments; its backward knows that the moments came from all ranks' maps."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, variance, count)
        ctx.eps = eps
        # Evaluation-mode batch norm is exactly this arithmetic, in one pass and in the maps' own layout.
        return F.batch_norm(maps, mean, variance, weight.to(mean.dtype), bias.to(mean.dtype), False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, variance, count = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        grad32 = grad.float()
        grad_bias = grad32.sum((0, 2, 3))
        grad_weight = (grad32 * (maps.float() - _per_channel(mean))).sum((0, 2, 3)) * inverse
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        mean_grad, mean_grad_normed = sums / count
        # d/dx of w * (x - mean) * inverse, with mean and variance functions of every x on every rank.
        scale = weight.float() * inverse
        slope = -scale * inverse * mean_grad_normed
        offset = -scale * mean_grad - slope * mean
        grad_maps = grad32 * _per_channel(scale) + maps.float() * _per_channel(slope) + _per_channel(offset)
        return (
            grad_maps.to(maps.dtype),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            *(None,) * 4,
        )


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
