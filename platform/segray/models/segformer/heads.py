"""The all-MLP decode heads, in a folded form that mixes the channels of each level before resizing it.

The published head projects each level to E channels, resizes it to 1/4, concatenates all four levels and fuses them
with a 1x1 convolution. A bilinear resize treats all channels alike, so it commutes with a linear map over channels.
Two consecutive linear maps are equivalent to one. This module therefore multiplies each level's projection by its
slice of the fuse convolution, applies the product at the level's own resolution, resizes the result and adds it to
the sum. The parameters, the results and the gradients are those of the published head.

See: SegFormer, arXiv 2105.15203, section 3.2.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segray.models.batch_norm import GlobalBatchNorm2d
from segray.models.layers import map_to_tokens, tokens_to_map
from segray.models.segformer.encoder import init_weights
from segray.models.segformer.fused_head import fused_classify
from segray.models.segformer.tiling import PyramidLevels


class FusedHead(nn.Module):
    """Base class of both published heads: fuse convolution, batch norm, ReLU, Dropout2d and classifier."""

    def __init__(self, num_levels: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(num_levels * width, width, 1, bias=False)
        self.bn = GlobalBatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.dropout = dropout

    def fuse_and_classify(
        self, maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None
    ) -> Tensor:
        """Returns the logits (B, K, h_1, w_1) of the maps (B, h_i, w_i, C_i), finest first.

        Args:
            maps: maps of the levels.
            weights: one matrix (E, C_i) per level.
            bias: sum of the biases of all levels, (E,).
        """
        if not self.bn.training:
            scale, shift = self.bn.inference_affine()
            weights = [weight * scale.unsqueeze(1) for weight in weights]
            bias = shift if bias is None else bias * scale + shift
        *coarser, coarsest = zip(maps[1:], weights[1:], strict=True)
        # Resizing does not change a constant, so the bias is added to the smallest map.
        coarse = [F.linear(level, weight) for level, weight in coarser] + [F.linear(*coarsest, bias)]
        levels = PyramidLevels(maps[0], weights[0], coarse)
        assert self.classifier.bias is not None
        return tokens_to_map(fused_classify(levels, self.bn, self._classifier(maps[0].shape[0]), self.classifier.bias))

    def _classifier(self, num_images: int) -> Tensor:
        """Returns the classifier matrix (K, E), or (B, K, E) with the channels that Dropout2d drops set to 0.

        Dropping a channel of an image is equivalent to zeroing that channel in the image's classifier, which is a much
        smaller tensor.
        """
        matrix = self.classifier.weight.flatten(1)
        if not self.training or self.dropout == 0.0:
            return matrix
        return matrix * F.dropout(matrix.new_ones(num_images, 1, matrix.shape[1]), self.dropout)

    def _slices(self) -> Sequence[Tensor]:
        """Returns the matrices (E, E) of the fuse convolution, one per level, in the order in which they are stored."""
        return self.fuse.weight.flatten(1).chunk(self.fuse.in_channels // self.fuse.out_channels, dim=1)


class SegFormerHead(FusedHead):
    """The head of the paper. Its fuse convolution stores the coarsest level first."""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(len(dims), width, num_classes, dropout)
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.apply(init_weights)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns the logits (B, K, h_1, w_1) of the maps (B, C_i, h_i, w_i), finest first."""
        projections = cast("list[nn.Linear]", self.projections)
        pairs = list(zip(self._slices()[::-1], projections, strict=True))
        with _without_autocast(self.fuse.weight.device.type):
            weights = [part @ projection.weight for part, projection in pairs]
            bias = torch.stack([part @ projection.bias for part, projection in pairs]).sum(0)
        return self.fuse_and_classify([map_to_tokens(level) for level in maps], weights, bias)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Returns a context that disables autocast, so that products keep the dtype of their operands.

    Rounding errors here would affect the matrix of every level.
    """
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


class ConvBNReLU(nn.Module):
    """The projection of a level in mmsegmentation: 1x1 convolution without bias, batch norm, ReLU."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, width, 1, bias=False)
        self.bn = GlobalBatchNorm2d(width)

    def forward(self, level: Tensor) -> Tensor:
        """Returns the projected map (B, E, h, w) of a level (B, C, h, w)."""
        mixed = tokens_to_map(F.linear(map_to_tokens(level), self.conv.weight.flatten(1)))
        return F.relu(self.bn(mixed))


class MmsegHead(FusedHead):
    """The head of mmsegmentation: projections end in a ReLU, and the fuse convolution stores the finest level first."""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(len(dims), width, num_classes, dropout)
        self.projections = nn.ModuleList(ConvBNReLU(dim, width) for dim in dims)
        self.apply(init_weights)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns the logits (B, K, h_1, w_1) of the maps (B, C_i, h_i, w_i), finest first."""
        projected = [projection(level) for projection, level in zip(self.projections, maps, strict=True)]
        return self.fuse_and_classify([map_to_tokens(level) for level in projected], self._slices())


AUX_WIDTH = 256


class FCNHead(nn.Module):
    """An auxiliary head on one map, like mmsegmentation's FCNHead: 3x3 convolution, batch norm, ReLU, classifier."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, AUX_WIDTH, 3, padding=1, bias=False)
        self.bn = GlobalBatchNorm2d(AUX_WIDTH)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(AUX_WIDTH, num_classes, 1)
        self.apply(init_weights)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, level: Tensor) -> Tensor:
        """Returns the logits (B, K, h, w) of a map (B, C, h, w)."""
        logits: Tensor = self.classifier(self.dropout(F.relu(self.bn(self.conv(level)))))
        return logits
