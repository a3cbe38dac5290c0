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
        return _unweighted if self.weights is None and self.smoothing == 0 else self._score_weighted

    def _score_weighted(self, logs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Computes -sum(v * logs) and its gradient p * sum(v) - v for targets v_k with any sum."""
        weights = _column(self.weights, logs)
        smooth = (weights * (self.smoothing / logs.shape[1])).expand_as(logs)
        true_class = weights.expand_as(logs).gather(1, target) * (1 - self.smoothing)
        soft_target = smooth.scatter_add(1, target, true_class) * valid
        total = -(soft_target * logs).sum()
        return total, logs.exp_().mul_(soft_target.sum(1, keepdim=True)).sub_(soft_target)


def _unweighted(logs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    total = -(logs.gather(1, target) * valid).sum()
    logit_grad = logs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=logs.dtype)).mul_(valid)
    return total, logit_grad


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
        log_prob = logs.gather(1, target)
        complement = -torch.expm1(log_prob)  # 1 - p
        total = -(factor * complement**self.gamma * log_prob).sum()
        slope = complement**self.gamma  # negative derivative with respect to log p
        if self.gamma:
            slope = slope - self.gamma * complement ** (self.gamma - 1) * log_prob.exp() * log_prob
        slope = slope * factor
        return total, logs.exp_().mul_(slope).scatter_add_(1, target, -slope)


@dataclass(frozen=True)
class OhemLoss:
    """Cross-entropy of only the hard pixels of each image (OHEM).

    The sum is divided by the number of all valid pixels, as in mmsegmentation.

    Attributes:
        loss: loss of the selected pixels.
        threshold: probability of the true class below which a pixel is hard.
        min_kept: minimum fraction of the valid pixels of an image to select, hardest first.
    """

    loss: CrossEntropyLoss
    threshold: float = 0.7
    min_kept: float = 1 / 16

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over the hard pixels for logits (B, K, h, w) and ids (B, H, W) int64."""
        probability = true_class_log_probs(logits, mask, ignore_id).exp()
        valid = mask != ignore_id
        kept = torch.stack([self._select_hard(*pair) for pair in zip(probability, valid, strict=True)])
        return self.loss(logits, mask.where(kept, ignore_id), ignore_id)

    def _select_hard(self, probability: Tensor, valid: Tensor) -> Tensor:
        count = valid.sum()
        if count == 0:
            return valid
        hardest = probability[valid].kthvalue(max(1, int(count * self.min_kept))).values
        return valid & ((probability < self.threshold) | (probability <= hardest))


def _column(weights: Tensor | None, logs: Tensor) -> Tensor:
    if weights is None:
        return logs.new_ones(1, logs.shape[1], 1)
    return weights.to(logs).view(1, -1, 1)
