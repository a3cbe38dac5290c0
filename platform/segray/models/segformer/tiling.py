"""Tiled processing of large maps in tiles of rows: the criterion for using it, and the tiled sum of all levels."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from segray.models.layers import bilinear_matrix, source_rows

# Size of a tile in bytes per thread, chosen to fit into the cache of one core together with the operands.
TILE_BYTES = 1 << 20


def should_tile(tensor: Tensor) -> bool:
    """Returns True if a map is processed in tiles: for float32 and float64 tensors on a CPU.

    There, passes over a large map cost more than the arithmetic. Compiled code, autocast and GPUs use the plain
    operations; compilers and GPUs fuse these themselves.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in {torch.float32, torch.float64}:
        return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))


def row_tiles(num_rows: int, row_bytes: int) -> list[slice]:
    """Returns slices that divide a map's rows into tiles of about `TILE_BYTES` per thread, at least one row each."""
    step = max(1, TILE_BYTES * torch.get_num_threads() // row_bytes)
    return [slice(top, min(top + step, num_rows)) for top in range(0, num_rows, step)]


class PyramidLevels(NamedTuple):
    """The levels to be summed: `fine @ weight.T` and the coarser levels, resized bilinearly to the size of `fine`.

    Attributes:
        fine: finest level (B, h, w, C).
        weight: matrix (E, C) applied to `fine`.
        coarse: maps (B, h_i, w_i, E).
    """

    fine: Tensor
    weight: Tensor
    coarse: list[Tensor]


class TiledLevelSum:
    """Computes the sum of levels in tiles that fit into a core's cache, and propagates tile gradients to the levels."""

    def __init__(self, levels: PyramidLevels) -> None:
        self.levels = levels
        fine, weight, coarse = levels
        self.num_images, self.height, self.width = fine.shape[:3]
        self.row_bytes = self.width * weight.shape[0] * weight.element_size()
        self.rows = [bilinear_matrix(self.height, level.shape[1], like=weight) for level in coarse]
        self.widths = [level.shape[2] for level in coarse]
        # (w, w_2 + w_3 + w_4): one product resizes the columns of all coarser levels and sums the results.
        self.columns = torch.cat([bilinear_matrix(self.width, width, like=weight) for width in self.widths], dim=1)

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        """Yields the image index and the rows of each tile."""
        for image in range(self.num_images):
            for rows in row_tiles(self.height, self.row_bytes):
                yield image, rows

    def forward_tile(self, image: int, rows: slice, out: Tensor | None = None) -> Tensor:
        """Returns the given rows of the sum, (R*w, E), and writes them to `out` if given."""
        total = torch.mm(self.levels.fine[image, rows].flatten(0, 1), self.levels.weight.t(), out=out)
        bands = [
            (band @ level[image, source].flatten(1)).unflatten(1, level.shape[2:])
            for level, source, band in self._bands(self.levels, rows)
        ]
        narrow = torch.cat(bands, dim=1)  # (R, w_2 + w_3 + w_4, E)
        columns = self.columns.expand(narrow.shape[0], -1, -1)
        total.unflatten(0, (-1, self.width)).baddbmm_(columns, narrow)
        return total

    def backward_tile(self, image: int, rows: slice, grad: Tensor, grads: PyramidLevels) -> None:
        """Adds the gradient contributions of one tile, with gradient (R*w, E), to the levels and weight in `grads`."""
        fine = self.levels.fine[image, rows].flatten(0, 1)
        grads.weight.addmm_(grad.t(), fine)
        torch.mm(grad, self.levels.weight, out=grads.fine[image, rows].flatten(0, 1))
        wide = grad.unflatten(0, (-1, self.width))
        narrow = torch.bmm(self.columns.t().expand(wide.shape[0], -1, -1), wide)
        parts = narrow.split(self.widths, dim=1)
        for (level, source, band), part in zip(self._bands(grads, rows), parts, strict=True):
            level[image, source].flatten(1).addmm_(band.t(), part.flatten(1))

    def zero_grads(self) -> PyramidLevels:
        """Returns gradient buffers with the shapes of the levels.

        `weight` and `coarse` are zero. `fine` is uninitialised, because each tile overwrites its rows.
        """
        fine, weight, coarse = self.levels
        zeros = [torch.zeros_like(level) for level in coarse]
        return PyramidLevels(fine.new_empty(fine.shape), torch.zeros_like(weight), zeros)

    def _bands(self, levels: PyramidLevels, rows: slice) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """Yields each coarser level, its source rows for `rows`, and the matrix that interpolates between them."""
        for level, matrix in zip(levels.coarse, self.rows, strict=True):
            source = source_rows(rows, self.height, level.shape[1])
            yield level, source, matrix[rows, source]
