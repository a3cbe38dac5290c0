"""Building blocks shared by networks and losses: views of maps, bilinear resize matrices, and the autograd context."""

from typing import Protocol

import torch
from torch import Tensor


class AutogradContext(Protocol):
    """The context of a `torch.autograd.Function`, as far as it is used here."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class NormContext(AutogradContext, Protocol):
    """The context of a function that normalises maps.

    Attributes:
        eps: number added to the variance.
    """

    eps: float


def tokens_to_map(tokens: Tensor) -> Tensor:
    """Returns a channels-last view (B, C, h, w) of the map (B, h, w, C), without a copy."""
    return tokens.permute(0, 3, 1, 2)


def map_to_tokens(image: Tensor) -> Tensor:
    """Returns a view (B, h, w, C) of the image (B, C, h, w), without a copy."""
    return image.permute(0, 2, 3, 1)


def bilinear_matrix(out_size: int, in_size: int, like: Tensor) -> Tensor:
    """Returns the matrix (out, in) of a bilinear resize along one axis, with align_corners=False.

    The matrix has the dtype and the device of `like`.
    """
    positions = torch.arange(out_size, dtype=torch.float64)
    centre = ((positions + 0.5) * (in_size / out_size) - 0.5).clamp_min(0.0)
    low = centre.long().clamp_max(in_size - 1)
    high = (low + 1).clamp_max(in_size - 1)
    fraction = (centre - low).unsqueeze(1)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    matrix.scatter_add_(1, low.unsqueeze(1), 1.0 - fraction)
    matrix.scatter_add_(1, high.unsqueeze(1), fraction)
    return matrix.to(like)


def source_rows(rows: slice, out_size: int, in_size: int) -> slice:
    """Returns the source rows that contribute to the output rows `rows`, with at most one extra row on each side."""
    ratio = in_size / out_size
    first = int(max((rows.start + 0.5) * ratio - 0.5, 0.0))
    last = int(max((rows.stop - 0.5) * ratio - 0.5, 0.0))
    return slice(max(first - 1, 0), min(last + 3, in_size))
