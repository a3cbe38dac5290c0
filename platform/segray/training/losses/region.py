"""Region losses: Dice, Tversky, Lovasz and boundary.

Each loss is computed per image and weighted by the number of valid pixels of the image, so it is a sum over pixels
like all other losses. The shares of a global batch therefore add up for any distribution of its images over ranks or
over the parts of a step. Logits are resized to the mask and passed to a softmax at least in float32. The backward pass
recomputes the intermediate values, so only those of one image are in memory at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ImageLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function from probabilities (K, H, W), 0/1 ground truth (K, H, W) and a valid mask (H, W) to a loss ().

At least one pixel is valid.
"""


def sum_over_images(logits: Tensor, mask: Tensor, ignore_id: int, loss: ImageLoss) -> Tensor:
    """Returns the sum over images of their loss times their number of valid pixels.

    Args:
        logits: (B, K, h, w), any floating dtype.
        mask: (B, H, W) int64 class ids, or `ignore_id`.
        ignore_id: mask value to exclude.
        loss: loss of one image; probabilities and ground truth are 0 at ignored pixels.
    """
    # A fully ignored batch also has a gradient, of 0. In float16 the sum would overflow, and inf * 0 is NaN.
    total = logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)) * 0
    for image, ids in zip(logits, mask, strict=True):
        valid = ids != ignore_id
        if valid.any():
            image_loss = checkpoint(
                _compute_image_loss, image, ids, valid, loss, use_reentrant=False, preserve_rng_state=False
            )
            total = total + image_loss * valid.sum()
    return total


def _compute_image_loss(image: Tensor, ids: Tensor, valid: Tensor, loss: ImageLoss) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        precise = image.to(torch.promote_types(image.dtype, torch.float32))
        full = F.interpolate(precise.unsqueeze(0), size=ids.shape, mode="bilinear", align_corners=False)
        probabilities = full[0].softmax(0) * valid
        truth = torch.zeros_like(probabilities).scatter_(0, ids.where(valid, 0).unsqueeze(0), 1) * valid
        return loss(probabilities, truth, valid)


@dataclass(frozen=True)
class TverskyLoss:
    """One minus the Tversky index TP / (TP + alpha FP + beta FN), averaged over the classes in the image.

    With alpha = beta = 0.5 it is the Dice loss.

    See: Salehi et al., arXiv 1706.05721.
    """

    alpha: float = 0.3
    beta: float = 0.7

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over images for logits (B, K, h, w) and ids (B, H, W) int64."""
        return sum_over_images(logits, mask, ignore_id, self._image_loss)

    def _image_loss(self, probabilities: Tensor, truth: Tensor, _valid: Tensor) -> Tensor:
        true_positives = (probabilities * truth).sum((1, 2))
        predicted, true = probabilities.sum((1, 2)), truth.sum((1, 2))
        denominator = true_positives + self.alpha * (predicted - true_positives) + self.beta * (true - true_positives)
        index = true_positives / denominator.clamp_min(1e-6)
        return 1 - index[true > 0].mean()


def dice_loss() -> TverskyLoss:
    """Returns the Dice loss, one minus 2 TP / (2 TP + FP + FN)."""
    return TverskyLoss(0.5, 0.5)


@dataclass(frozen=True)
class LovaszSoftmaxLoss:
    """Lovasz-Softmax, the convex surrogate of 1 - IoU, averaged over the classes in the image.

    See: Berman et al., arXiv 1705.08790.
    """

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over images for logits (B, K, h, w) and ids (B, H, W) int64."""
        return sum_over_images(logits, mask, ignore_id, self._image_loss)

    def _image_loss(self, probabilities: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        present = truth.flatten(1).any(1).nonzero().flatten()
        return torch.stack([_lovasz(probabilities[k][valid], truth[k][valid]) for k in present]).mean()


def _lovasz(probability: Tensor, truth: Tensor) -> Tensor:
    """Returns the surrogate loss of one class for pixels (P,)."""
    errors, order = (truth - probability).abs().sort(descending=True)
    sorted_truth = truth[order]
    union = truth.sum() + (1 - sorted_truth).cumsum(0)
    jaccard = 1 - (truth.sum() - sorted_truth.cumsum(0)) / union
    return errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1))


@dataclass(frozen=True)
class BoundaryLoss:
    """One minus the boundary F1 score, averaged over the classes with an outline in the image.

    The outline of a class contains its pixels within one pixel of another class. An outline pixel counts as matched if
    the other outline is within `width_px` pixels.

    Attributes:
        width_px: matching distance in pixels.

    See: Bokhovkin and Burnaev, Boundary Loss for Remote Sensing Imagery, arXiv 1905.07852.
    """

    width_px: int = 2

    def __call__(self, logits: Tensor, mask: Tensor, ignore_id: int) -> Tensor:
        """Returns the sum over images for logits (B, K, h, w) and ids (B, H, W) int64."""
        return sum_over_images(logits, mask, ignore_id, self._image_loss)

    def _image_loss(self, probabilities: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        predicted, true = self._outline(probabilities, valid), self._outline(truth, valid)
        has_outline = true.sum((1, 2)) > 0
        precision = _fraction(predicted * _dilate(true, self.width_px), predicted)
        recall = _fraction(true * _dilate(predicted, self.width_px), true)
        f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-6)
        return 1 - f1[has_outline].mean() if has_outline.any() else (probabilities * 0).sum()

    def _outline(self, classes: Tensor, valid: Tensor) -> Tensor:
        """Returns the outlines of the classes.

        An outline contains the pixels of a class within one pixel of its outside, except next to an ignored pixel.
        """
        near_ignored = _dilate((~valid).to(classes).unsqueeze(0), 1)
        return (_dilate(1 - classes, 1) - (1 - classes)) * (1 - near_ignored)


def _dilate(maps: Tensor, radius: int) -> Tensor:
    """Returns the maximum within `radius` pixels, (K, H, W)."""
    return F.max_pool2d(maps.unsqueeze(0), 2 * radius + 1, stride=1, padding=radius)[0]


def _fraction(part: Tensor, total: Tensor) -> Tensor:
    return part.sum((1, 2)) / total.sum((1, 2)).clamp_min(1e-6)
