"""Registry of the losses, by name, and their weighted sum. Each loss resizes the logits (H/4, W/4) to the mask itself.

All losses are sums over valid pixels divided by a normaliser. The contributions of the ranks of a global batch, or of
the parts of an accumulated step, therefore add up to the loss of the complete batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from segray.config import LossConfig
from segray.core.errors import ConfigError, DataError, ModelError
from segray.core.imports import import_callable
from segray.training.losses.pixel import CrossEntropyLoss, FocalLoss, OhemLoss
from segray.training.losses.region import BoundaryLoss, LovaszSoftmaxLoss, TverskyLoss, dice_loss

__all__ = [
    "BoundaryLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "Loss",
    "LovaszSoftmaxLoss",
    "OhemLoss",
    "TverskyLoss",
    "build_loss",
    "cross_entropy",
]

LossParts = dict[str, Tensor]
PixelSum = Callable[[Tensor, Tensor, int], Tensor]
"""Function from logits (B, K, h, w), ids (B, H, W) int64 and the ignore id to a sum over valid pixels."""


class Loss(Protocol):
    """Interface of all losses, including user-defined ones. Returns the total and its detached components by name."""

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        *,
        ignore_id: int,
        normaliser: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]: ...


def build_loss(config: LossConfig, num_classes: int, class_pixels: Sequence[int] | None = None) -> Loss:
    """Returns the weighted sum of losses that the settings describe.

    If the outputs contain "aux", its cross-entropy with the same class weights is added, multiplied by `aux_weight`.

    Args:
        config: loss settings.
        num_classes: number of classes K.
        class_pixels: number of pixels of each class; required if class weights are computed from them.

    Raises:
        ConfigError: the number of class weights is not K, or the class weights need pixel counts that are unknown.
        ModelError: a user-defined loss cannot be imported or is not callable.
    """
    weights = class_weights(config, num_classes, class_pixels)
    cross_entropy_sum = CrossEntropyLoss(weights, config.smoothing)
    pixel_sums: dict[str, PixelSum] = {
        "cross_entropy": cross_entropy_sum,
        "ohem": OhemLoss(cross_entropy_sum, config.ohem_threshold, config.ohem_min_kept),
        "focal": FocalLoss(weights, config.focal_gamma),
        "dice": dice_loss(),
        "tversky": TverskyLoss(config.tversky_alpha, config.tversky_beta),
        "lovasz": LovaszSoftmaxLoss(),
        "boundary": BoundaryLoss(config.boundary_width_px),
    }
    terms: list[tuple[float, Loss]] = []
    for name, weight in config.weight_by_loss().items():
        if name in pixel_sums:
            terms.append((weight, _normalized(name, pixel_sums[name])))
        else:
            terms.append((weight, import_callable("loss.terms", name, ModelError)))
    known_outputs = ["seg"] * any(name in pixel_sums for name in config.weight_by_loss()) + ["aux"] * bool(
        config.aux_weight
    )
    return _weighted_sum(terms, _normalized("aux", cross_entropy_sum), config.aux_weight, known_outputs)


def _weighted_sum(
    terms: Sequence[tuple[float, Loss]], auxiliary: Loss, aux_weight: float, known_outputs: Sequence[str]
) -> Loss:
    """Returns the weighted sum of losses.

    Args:
        terms: losses and their weights.
        auxiliary: loss of the auxiliary head.
        aux_weight: weight of that loss.
        known_outputs: names of the outputs that the losses certainly use, if there are such outputs.
    """

    def loss(
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        *,
        ignore_id: int,
        normaliser: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        results = [
            (weight, *term(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)) for weight, term in terms
        ]
        if aux_weight and "aux" in outputs:
            aux_outputs = {"seg": outputs["aux"]}
            results.append((aux_weight, *auxiliary(aux_outputs, batch, ignore_id=ignore_id, normaliser=normaliser)))
        total = torch.stack([weight * value for weight, value, _ in results]).sum()
        total = total + _zero_of({name: output for name, output in outputs.items() if name not in known_outputs})
        return total, {name: part for _, _, parts in results for name, part in parts.items()}

    return loss


def _zero_of(outputs: Mapping[str, Tensor]) -> Tensor | float:
    """Returns a zero that depends on every output, with gradients of 0 even if an output is not finite.

    DDP requires that every output of the model takes part in the loss.
    """
    return sum((torch.atleast_1d(output)[:0].sum() for output in outputs.values()), start=0.0)


def _normalized(name: str, pixel_sum: PixelSum) -> Loss:
    """Returns a loss that divides a sum over pixels by the normaliser, by default the batch's valid pixel count."""

    def loss(
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        *,
        ignore_id: int,
        normaliser: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        logits, mask = outputs["seg"], batch["mask"].to(torch.int64)
        if mask.device.type == "cpu":
            _check_ids(mask, logits.shape[1], ignore_id)
        if normaliser is None:
            normaliser = (mask != ignore_id).sum().clamp_min(1)
        total = pixel_sum(logits, mask, ignore_id) / normaliser
        return total, {name: total.detach()}

    return loss


cross_entropy = _normalized("cross_entropy", CrossEntropyLoss())
"""Published loss: mean cross-entropy of the bilinearly resized logits over the valid pixels.

Masks are (B, H, W) of any integer dtype. A batch without valid pixels has loss 0 and gradients 0. Raises `DataError`
if a mask on the CPU contains an id that is neither a class nor the ignore id.
"""


def class_weights(config: LossConfig, num_classes: int, class_pixels: Sequence[int] | None) -> Tensor | None:
    """Returns the weights (K,) of the classes, or `None` for equal weights.

    "balanced" gives all classes the same total weight: N / (K n_k), whose mean over the pixels is 1. "median" divides
    the median of the counts by the count of the class (median frequency balancing of SegNet). A class without pixels
    has weight 0.

    Raises:
        ConfigError: the number of class weights is not K, or the pixel counts are required and unknown.
    """
    setting = config.class_weights
    if setting is None:
        return None
    if isinstance(setting, str):
        if class_pixels is None:
            raise ConfigError(
                f"loss.class_weights is {setting}; expected numbers, because the pixel counts are unknown."
            )
        counts = torch.tensor(class_pixels, dtype=torch.float64)
        is_present = counts > 0
        reference = counts[is_present].median() if setting == "median" else counts.sum() / is_present.sum()
        return (reference / counts.clamp_min(1)).where(is_present, 0).float()
    if len(setting) != num_classes:
        raise ConfigError(
            f"loss.class_weights has {len(setting)} numbers; expected one for each of {num_classes} classes."
        )
    return torch.tensor(setting)


def _check_ids(mask: Tensor, num_classes: int, ignore_id: int) -> None:
    invalid = (mask < 0) | ((mask >= num_classes) & (mask != ignore_id))
    if invalid.any():
        ids = mask[invalid].unique().tolist()
        raise DataError(
            f"the mask contains the ids {ids[:5]} in {int(invalid.sum())} pixels; expected 0..{num_classes - 1}, "
            f"or {ignore_id} for ignored pixels; convert the dataset again with the correct classes."
        )
