"""SegFormer, all six published variants: uint8 RGB images in, class logits at a quarter of their size out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segray.errors import ModelError, nearest
from segray.model.decoder import MmsegHead, OfficialHead
from segray.model.encoder import NORM_EPS, Encoder

# RGB mean and deviation of ImageNet, on the scale 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SMALLEST_PX = 32


@dataclass(frozen=True)
class Variant:
    """The sizes of one variant: channels and blocks of the four stages, width E of the official head."""

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
HEADS = {"official": OfficialHead, "mmseg": MmsegHead}


class SegFormer(nn.Module):
    """An encoder, a decode head, and the normalisation of their input."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {"seg": logits (B, K, ceil(H/4), ceil(W/4))} of uint8 RGB images (B, 3, H, W).

        Raises:
            ModelError: the images are not uint8, not (B, 3, H, W), or smaller than 32 pixels.
        """
        check_images(images)
        return {"seg": self.head(self.encoder((images - self.mean) / self.std))}


def check_images(images: Tensor) -> None:
    """Raises ModelError unless the images are uint8 RGB (B, 3, H, W) of at least 32 pixels a side."""
    if images.dtype != torch.uint8:
        raise ModelError(
            f"images are {images.dtype}; expected torch.uint8 RGB, 0..255; pass them as decoded: "
            "the model normalises them itself."
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ModelError(f"images have the shape {tuple(images.shape)}; expected (B, 3, H, W).")
    height, width = images.shape[-2:]
    if height < SMALLEST_PX or width < SMALLEST_PX:
        raise ModelError(
            f"images are {height}x{width} pixels; expected at least {SMALLEST_PX}x{SMALLEST_PX}; resize or pad them."
        )


def build(
    variant: str,
    num_classes: int,
    *,
    head: str = "official",
    drop_path: float = 0.1,
    dropout: float = 0.1,
    norm_eps: str = "official",
) -> SegFormer:
    """Returns a SegFormer with freshly drawn parameters.

    Args:
        variant: "b0" to "b5".
        num_classes: K, the channels of the logits.
        head: "official".
        drop_path: rate at which the last block's branches are dropped in training; earlier blocks less.
        dropout: rate of the head's Dropout2d.
        norm_eps: whose layer norm epsilons to use: "official", "mmseg" or "transformers".

    Raises:
        ModelError: a name is unknown or a number out of range.
    """
    sizes = VARIANTS[_known("model.variant", variant, VARIANTS)]
    _known("model.norm_eps", norm_eps, NORM_EPS)
    head_class = HEADS[_known("model.head", head, HEADS)]
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; expected at least 1.")
    encoder = Encoder(sizes.dims, sizes.depths, drop_path, norm_eps)
    return SegFormer(encoder, head_class(sizes.dims, sizes.head_width, num_classes, dropout))


def _known(setting: str, name: str, known: dict[str, object] | dict[str, type]) -> str:
    if name not in known:
        raise ModelError(f"{setting} is {name!r}; expected one of {', '.join(known)}{nearest(name, known)}.")
    return name
