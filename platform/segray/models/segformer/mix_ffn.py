"""The feed-forward layer of a block. Its depth-wise convolution also encodes positions.

The hidden map is four times as wide as the tokens. On a CPU, it is computed in tiles of a few rows that fit into the
cache. Inference never stores the complete hidden map. Training recomputes a large hidden map in the backward pass,
which takes no longer than writing it to memory and reading it back.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segray.models.layers import AutogradContext, map_to_tokens, tokens_to_map
from segray.models.segformer.tiling import row_tiles, should_tile

# Hidden maps with fewer tiles per image are stored for the backward pass, because recomputing them would be slower.
MIN_TILES = 4

gelu_backward = torch.ops.aten.gelu_backward
convolution_backward = torch.ops.aten.convolution_backward


class MixFFN(nn.Module):
    """Linear layer, 3x3 depth-wise convolution, GELU and linear layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns a map with the shape (B, h, w, C) of `tokens`."""
        if should_tile(tokens):
            weights = MixFfnWeights(*self.parameters())
            if not torch.is_grad_enabled():
                return _forward_tiled(tokens, weights)
            if len(_row_tiles(tokens, weights)) >= MIN_TILES:
                tiled: Tensor = _TiledMixFFN.apply(tokens, *weights)  # type: ignore[no-untyped-call]
                return tiled
        mixed = map_to_tokens(self.mix(tokens_to_map(self.fc1(tokens))))
        out: Tensor = self.fc2(F.gelu(mixed))
        return out


class MixFfnWeights(NamedTuple):
    """The parameters of the layer, in the order of the module's parameters."""

    expand: Tensor  # (H, C), where H is the hidden width
    expand_bias: Tensor
    mix: Tensor  # (H, 1, 3, 3)
    mix_bias: Tensor
    reduce: Tensor  # (C, H)
    reduce_bias: Tensor


def _row_tiles(tokens: Tensor, weights: MixFfnWeights) -> list[slice]:
    hidden_bytes = tokens.shape[2] * len(weights.expand) * tokens.element_size()
    return row_tiles(tokens.shape[1], hidden_bytes)


def _add_border(rows: slice, num_rows: int) -> slice:
    """Returns the rows extended by one row on each side, clipped to the map."""
    return slice(max(rows.start - 1, 0), min(rows.stop + 1, num_rows))


def _expand(tokens: Tensor, weights: MixFfnWeights, rows: slice) -> Tensor:
    """Returns the hidden image (1, H, R + 2, w) of rows of a map (1, h, w, C), with one extra row on each side.

    Rows outside the map are 0.
    """
    border = _add_border(rows, tokens.shape[1])
    before, after = border.start - rows.start + 1, rows.stop + 1 - border.stop
    hidden = tokens.new_empty(1, rows.stop - rows.start + 2, tokens.shape[2], len(weights.expand))
    inside = hidden[0, before : hidden.shape[1] - after]
    torch.addmm(weights.expand_bias, tokens[0, border].flatten(0, 1), weights.expand.t(), out=inside.flatten(0, 1))
    hidden[0, :before] = 0
    hidden[0, hidden.shape[1] - after :] = 0
    return tokens_to_map(hidden)


def _mix(hidden: Tensor, weights: MixFfnWeights) -> Tensor:
    """Returns the tile (1, R, w, H) of the hidden image after the depth-wise convolution."""
    mixed = F.conv2d(hidden, weights.mix, weights.mix_bias, padding=(0, 1), groups=len(weights.mix))
    return map_to_tokens(mixed)


def _forward_tiled(tokens: Tensor, weights: MixFfnWeights) -> Tensor:
    out = tokens.new_empty(tokens.shape)
    for image in range(len(tokens)):
        for rows in _row_tiles(tokens, weights):
            mixed = _mix(_expand(tokens[image : image + 1], weights, rows), weights)
            target = out[image, rows].flatten(0, 1)
            torch.addmm(weights.reduce_bias, F.gelu(mixed).flatten(0, 2), weights.reduce.t(), out=target)
    return out


class _TiledMixFFN(torch.autograd.Function):
    """The layer computed tile by tile. The forward pass saves only the input and the parameters."""

    @staticmethod
    def forward(ctx: AutogradContext, tokens: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, *parameters)
        return _forward_tiled(tokens, MixFfnWeights(*parameters))

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, grad: Tensor) -> tuple[Tensor, ...]:
        tokens, *parameters = ctx.saved_tensors
        weights = MixFfnWeights(*parameters)
        grad = grad.contiguous()
        grad_tokens = tokens.new_zeros(tokens.shape)
        grads = MixFfnWeights(*(torch.zeros_like(parameter) for parameter in weights))
        for image in range(len(tokens)):
            image_tokens, image_grad = tokens[image : image + 1], grad_tokens[image : image + 1]
            for rows in _row_tiles(tokens, weights):
                _backward_tile(image_tokens, weights, rows, grad[image, rows].flatten(0, 1), image_grad, grads)
        return grad_tokens, *grads


def _backward_tile(
    tokens: Tensor, weights: MixFfnWeights, rows: slice, grad: Tensor, grad_tokens: Tensor, grads: MixFfnWeights
) -> None:
    """Adds the gradient contributions of one output tile, with gradient (R*w, C), to `grad_tokens` and `grads`."""
    hidden = _expand(tokens, weights, rows)
    mixed = _mix(hidden, weights)
    active = F.gelu(mixed).flatten(0, 2)
    grads.reduce.addmm_(grad.t(), active)
    grads.reduce_bias.add_(grad.sum(0))
    grad_active = torch.mm(grad, weights.reduce, out=active)
    grad_mixed = gelu_backward(grad_active.view_as(mixed), mixed)
    grad_hidden, grad_mix, grad_mix_bias = convolution_backward(
        tokens_to_map(grad_mixed), hidden, weights.mix, [len(weights.mix)], [1, 1], [0, 1], [1, 1], False, [0, 0],
        len(weights.mix), [True, True, True],
    )  # fmt: skip
    grads.mix.add_(grad_mix)
    grads.mix_bias.add_(grad_mix_bias)
    border = _add_border(rows, tokens.shape[1])
    inside = slice(border.start - rows.start + 1, border.stop - rows.start + 1)
    grad_expanded = map_to_tokens(grad_hidden)[0, inside].flatten(0, 1)
    grads.expand.addmm_(grad_expanded.t(), tokens[0, border].flatten(0, 1))
    grads.expand_bias.add_(grad_expanded.sum(0))
    grad_tokens[0, border].flatten(0, 1).addmm_(grad_expanded, weights.expand)
