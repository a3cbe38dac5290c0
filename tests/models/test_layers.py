"""Interpolation matrices: against torch's own bilinear resize, and their strips against the whole."""

import pytest
import torch
import torch.nn.functional as F

from segray.models.layers import bilinear_matrix, source_rows

SIZES = [(16, 128), (25, 97), (13, 25), (7, 25), (1, 9), (40, 40), (33, 20), (128, 31)]


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_the_matrix_is_torchs_bilinear_resize(in_size, out_size):
    signal = torch.randn(1, 3, in_size, 1, dtype=torch.float64)
    expected = F.interpolate(signal, size=(out_size, 1), mode="bilinear", align_corners=False)
    matrix = bilinear_matrix(out_size, in_size, like=signal)
    torch.testing.assert_close(matrix @ signal, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix.sum(1), torch.ones(out_size, dtype=torch.float64))


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
@pytest.mark.parametrize("step", [1, 3, 8])
def test_rows_of_the_output_need_no_other_rows_of_the_source(in_size, out_size, step):
    matrix = bilinear_matrix(out_size, in_size, like=torch.zeros(()))
    for top in range(0, out_size, step):
        rows = slice(top, min(top + step, out_size))
        source = source_rows(rows, out_size, in_size)
        assert matrix[rows, source].sum() == pytest.approx(rows.stop - rows.start)
        assert source.stop - source.start <= (rows.stop - rows.start) * in_size / out_size + 5
