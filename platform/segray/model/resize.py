"""Bilinear resizing as products with thin matrices, so that a few rows can be resized at a time, and taken back."""

import torch
from torch import Tensor


def interpolation(out_size: int, in_size: int, device: torch.device | None = None) -> Tensor:
    """Returns the float32 matrix (out, in) of a bilinear resize along one side, align_corners=False."""
    centre = ((torch.arange(out_size, device=device) + 0.5) * (in_size / out_size) - 0.5).clamp_min(0)
    low = centre.long().clamp_max(in_size - 1)
    high = (low + 1).clamp_max(in_size - 1)
    fraction = (centre - low).unsqueeze(1)
    matrix = torch.zeros(out_size, in_size, device=device)
    matrix.scatter_add_(1, low.unsqueeze(1), 1 - fraction)
    return matrix.scatter_add_(1, high.unsqueeze(1), fraction)


def source_rows(top: int, bottom: int, out_size: int, in_size: int) -> slice:
    """Returns the source rows that rows top..bottom-1 of the output are mixed from (at most two too many)."""
    ratio = in_size / out_size
    first = int(max((top + 0.5) * ratio - 0.5, 0.0)) - 1
    last = int(max((bottom - 0.5) * ratio - 0.5, 0.0)) + 3
    return slice(max(first, 0), min(last, in_size))


def strips(num_rows: int, row_bytes: int, strip_bytes: int) -> list[slice]:
    """Returns slices that cut `num_rows` rows into strips of about `strip_bytes`, one row at least."""
    step = max(1, strip_bytes // row_bytes)
    return [slice(top, min(top + step, num_rows)) for top in range(0, num_rows, step)]
