"""SegFormer in all six published variants: computes class logits at a quarter of the size of uint8 RGB images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segray.core.errors import ModelError, did_you_mean
from segray.core.imports import is_import_path
from segray.models import plugins
from segray.models.architecture import SegmentationModel
from segray.models.segformer.encoder import NORM_EPS, Encoder
from segray.models.segformer.heads import FCNHead, MmsegHead, SegFormerHead

# RGB mean and standard deviation of ImageNet, on the scale 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
MIN_INPUT_PX = 32


@dataclass(frozen=True)
class Variant:
    """The sizes of one variant: channels and blocks of the four stages, and the width E of the official head."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head_width: int


VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Variant((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Variant((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Variant((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Variant((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Variant((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
HEADS = {"official": SegFormerHead, "mmseg": MmsegHead}
MMSEG_WIDTH = 256
AUX_STAGE = 2


class SegFormer(SegmentationModel):
    """An encoder, a decode head, an optional auxiliary head and the normalisation of their input.

    Every parameter name starts with `encoder.`, `head.` or `aux_head.`. Names of layer norm parameters contain `norm`.
    Names of the heads' batch norm parameters do not, because the published recipe applies weight decay to them.
    """

    output_stride = plugins.STRIDES[0]
    size_multiple = plugins.STRIDES[-1]
    classifiers = ("head.classifier", "aux_head.classifier")
    training_only = ("aux_head.",)

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module, aux_head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1.0 / torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {"seg": logits (B, K, ceil(H/4), ceil(W/4))} of uint8 RGB images (B, 3, H, W).

        An auxiliary head in training mode adds "aux", (B, K, ceil(H/16), ceil(W/16)). A user-defined head may return
        further entries.

        Raises:
            ModelError: the images are not uint8, not (B, 3, H, W), or smaller than 32 pixels.
        """
        validate_images(images)
        maps = self.encoder((images - self.mean).mul_(self.scale))
        outputs = self.head(maps)
        outputs = outputs if isinstance(outputs, dict) else {"seg": outputs}
        if self.aux_head is not None and self.aux_head.training:
            outputs["aux"] = self.aux_head(maps[AUX_STAGE])
        return outputs

    def has_weight_decay(self, name: str) -> bool:
        """Returns True if weight decay applies to the parameter `name`: to all except those of layer norms."""
        return "norm" not in name

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Returns the title and the module of each stage and of each head."""
        stages = getattr(self.encoder, "stages", None)
        parts: list[tuple[str, nn.Module]] = [("encoder", self.encoder)]
        if stages is not None:  # a user-defined encoder may have none
            parts = [(f"stage {index}", stage) for index, stage in enumerate(stages, start=1)]
        parts.append(("head", self.head))
        return parts if self.aux_head is None else [*parts, ("auxiliary head", self.aux_head)]


def validate_images(images: Tensor) -> None:
    """Raises ModelError unless the images are uint8 RGB (B, 3, H, W) with at least 32 pixels per side."""
    if images.dtype != torch.uint8:
        raise ModelError(
            f"images are {images.dtype}; expected torch.uint8 RGB, 0..255, not normalised; the model normalises them."
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ModelError(f"images have the shape {tuple(images.shape)}; expected (B, 3, H, W).")
    height, width = images.shape[-2:]
    if height < MIN_INPUT_PX or width < MIN_INPUT_PX:
        raise ModelError(
            f"images are {height}x{width} pixels; expected at least {MIN_INPUT_PX}x{MIN_INPUT_PX}; resize or pad them."
        )


def build_segformer(
    variant: str,
    num_classes: int,
    *,
    encoder: str = "mit",
    head: str = "official",
    drop_path: float = 0.1,
    dropout: float = 0.1,
    norm_eps: str = "official",
    activation_checkpointing: bool = False,
    aux_head: bool = False,
) -> SegFormer:
    """Returns a SegFormer with randomly initialised parameters.

    Args:
        variant: "b0" to "b5".
        num_classes: K, the number of logits channels.
        encoder: "mit", or `module:attribute` of a user-defined encoder (see `segray.models.plugins`).
        head: "official", "mmseg", or `module:attribute` of a user-defined head.
        drop_path: drop rate of the last block's branches in training; the rate increases linearly from 0.
        dropout: rate of the head's Dropout2d.
        norm_eps: publisher whose layer norm epsilons are used: "official", "mmseg" or "transformers".
        activation_checkpointing: whether the backward pass recomputes the blocks instead of storing their activations.
        aux_head: whether training adds a second head, an FCN on the map of the third stage.

    Raises:
        ModelError: a name is unknown, a number is out of range, or a plug-in does not satisfy the contract.
    """
    sizes = VARIANTS[_require_known("model.variant", variant, VARIANTS)]
    _require_known("model.norm_eps_from", norm_eps, NORM_EPS)
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; expected at least 1.")
    backbone: nn.Module
    dims: Sequence[int]
    if is_import_path(encoder):
        backbone, dims = plugins.build_encoder(encoder, drop_path)
    else:
        _require_known("model.encoder", encoder, {"mit": Encoder})
        dims = sizes.dims
        backbone = Encoder(dims, sizes.depths, drop_path, norm_eps, activation_checkpointing=activation_checkpointing)
    auxiliary = FCNHead(dims[AUX_STAGE], num_classes, dropout) if aux_head else None
    if is_import_path(head):
        return SegFormer(backbone, plugins.build_head(head, dims, num_classes, dropout), auxiliary)
    head_type = HEADS[_require_known("model.head", head, HEADS)]
    width = MMSEG_WIDTH if head == "mmseg" else sizes.head_width
    return SegFormer(backbone, head_type(dims, width, num_classes, dropout), auxiliary)


def _require_known(setting: str, name: str, known: Mapping[str, object]) -> str:
    if name not in known:
        raise ModelError(f"{setting} is {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}.")
    return name
