"""Figures of any size become a file."""

from PIL import Image

from segray.core.plots import DPI, new_axes, save_figure


def test_a_figure_that_is_too_high_for_its_resolution_is_written_at_a_lower_one(tmp_path):
    figure, _ = new_axes(2, 4)
    assert Image.open(save_figure(figure, tmp_path / "x.png")).size == (2 * DPI, 4 * DPI)
    figure, _ = new_axes(1, 600)  # of 2,000 classes
    width, height = Image.open(save_figure(figure, tmp_path / "y.png")).size
    assert 30_000 < height < 2**16
    assert width >= 50
