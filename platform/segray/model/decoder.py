"""The all-MLP decode head, folded: no level is ever upsampled before it is mixed.

As published, each level is projected to E channels, upsampled to 1/4, and all four are concatenated and fused by a
1x1 convolution. A bilinear resize treats all channels alike, so it commutes with a mixing of channels, and two linear
maps in a row are one: multiply projection and the level's slice of the fuse into one matrix, apply that at the
level's own resolution, upsample, add. The parameters stay the published ones, and so do results and gradients.

See: SegFormer, arXiv 2105.15203, section 3.2.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segray.model.encoder import as_image, as_tokens, initialise
from segray.model.norm import BatchNorm2d


class OfficialHead(nn.Module):
    """The decode head of the paper: projections, fuse, batch norm, ReLU, Dropout2d, classifier.

    The slices of `fuse` stand in the published order, coarsest level first.
    """

    def __init__(self, dims: Sequence[int], width: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.fuse = nn.Conv2d(len(dims) * width, width, 1, bias=False)
        self.bn = BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.apply(initialise)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns logits (B, K, h_1, w_1) of the four levels' maps (B, C_i, h_i, w_i), finest first."""
        weights, bias = self._folded()
        fused = add_upsampled([mix(level, weight) for level, weight in zip(maps, weights, strict=True)])
        fused = fused + bias.view(1, -1, 1, 1)
        fused = self.dropout(F.relu(self.bn(fused)))
        return mix(fused, self.classifier.weight.flatten(1), self.classifier.bias)

    def _folded(self) -> tuple[list[Tensor], Tensor]:
        """Returns one matrix (E, C_i) for each level and the bias (E,) that all levels add up to."""
        slices = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]
        pairs = list(zip(slices, self.projections, strict=True))
        with torch.autocast(self.fuse.weight.device.type, enabled=False):
            weights = [part @ projection.weight for part, projection in pairs]
            bias = torch.stack([part @ projection.bias for part, projection in pairs]).sum(0)
        return weights, bias


def mix(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns the channels of maps (B, C, h, w) mixed by `weight` (C', C): a 1x1 convolution."""
    return as_image(F.linear(as_tokens(maps), weight, bias))


def add_upsampled(levels: Sequence[Tensor]) -> Tensor:
    """Returns the sum (B, E, h_1, w_1) of maps (B, E, h_i, w_i), each resized bilinearly to the first's size."""
    finest, *coarser = levels
    total = finest
    for level in coarser:
        total = total + F.interpolate(level, size=finest.shape[-2:], mode="bilinear", align_corners=False)
    return total
