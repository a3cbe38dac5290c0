"""Losses that are sums over pixels: cross-entropy with class weights and label smoothing, OHEM and focal loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segray.training.losses.fused import ChunkLoss, pixel_loss_sum, true_class_log_probs


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy with class weights and label smoothing as defined by torch.

    Attributes:
        weights: (K,) weights of the classes; `None` weights all classes equally.
        smoothing: fraction of the target that is spread over all classes.
    """

    weights: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over the valid pixels for logits (B, K, h, w) and ids (B, H, W) int64."""
        return pixel_loss_sum(logits, mask, ignore_id, self._score())

    def _score(self) -> ChunkLoss:
        return _plain if self.weights is None and self.smoothing == 0 else self._weighted

    def _weighted(self, logs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Computes -sum(v * logs) and its gradient p * sum(v) - v for targets v_k with any sum."""
        weights = _column(self.weights, logs)
        spread = (weights * (self.smoothing / logs.shape[1])).expand_as(logs)
        sharp = weights.expand_as(logs).gather(1, target) * (1 - self.smoothing)
        wanted = spread.scatter_add(1, target, sharp) * valid
        total = -(wanted * logs).sum()
        return total, logs.exp_().mul_(wanted.sum(1, keepdim=True)).sub_(wanted)


def _plain(logs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    total = -(logs.gather(1, target) * valid).sum()
    slopes = logs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=logs.dtype)).mul_(valid)
    return total, slopes


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss on the softmax: -(1 - p)^gamma log p of the true class.

    Attributes:
        weights: (K,) weights of the classes; `None` weights all classes equally.
        gamma: focusing exponent: 0 (cross-entropy) or at least 1.

    See: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.
    """

    weights: Tensor | None = None
    gamma: float = 2.0

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over the valid pixels for logits (B, K, h, w) and ids (B, H, W) int64."""
        return pixel_loss_sum(logits, mask, ignore_id, self._score)

    def _score(self, logs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        factor = _column(self.weights, logs).expand_as(logs).gather(1, target) * valid
        own = logs.gather(1, target)
        missing = -torch.expm1(own)  # 1 - p
        total = -(factor * missing**self.gamma * own).sum()
        slope = missing**self.gamma  # negative derivative with respect to log p
        if self.gamma:
            slope = slope - self.gamma * missing ** (self.gamma - 1) * own.exp() * own
        slope = slope * factor
        return total, logs.exp_().mul_(slope).scatter_add_(1, target, -slope)


@dataclass(frozen=True)
class OhemLoss:
    """Cross-entropy of only the hard pixels of each image (OHEM).

    The sum is divided by the number of all valid pixels, as in mmsegmentation.

    Attributes:
        inner: loss of the selected pixels.
        threshold: probability of the true class below which a pixel is hard.
        share: minimum fraction of the valid pixels of an image to select, hardest first.
    """

    inner: CrossEntropyLoss
    threshold: float = 0.7
    share: float = 1 / 16

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over the hard pixels for logits (B, K, h, w) and ids (B, H, W) int64."""
        probability = true_class_log_probs(logits, mask, ignore_id).exp()
        valid = mask != ignore_id
        kept = torch.stack([self._hard(*pair) for pair in zip(probability, valid, strict=True)])
        return self.inner(logits, mask.where(kept, ignore_id), ignore_id)

    def _hard(self, probability: Tensor, valid: Tensor) -> Tensor:
        count = valid.sum()
        if count == 0:
            return valid
        hardest = probability[valid].kthvalue(max(1, int(count * self.share))).values
        return valid & ((probability < self.threshold) | (probability <= hardest))


def _column(weights: Tensor | None, logs: Tensor) -> Tensor:
    if weights is None:
        return logs.new_ones(1, logs.shape[1], 1)
    return weights.to(logs).view(1, -1, 1)
