"""Figures as PNG files, for pages, MLflow and papers."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

INK, SOFT, LINE, BLUE, RED = "#1d2530", "#5d6b7c", "#c5ccd4", "#2f6fb0", "#dc2626"
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11}
DPI = 130
MAX_SIDE_PX = 2**16 - 1
"""Maximum side of a figure; many viewers support no larger images."""


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Creates a figure with one plot.

    Args:
        width: width in inches.
        height: height in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=SOFT, length=0)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    return figure, axes


def save_figure(figure: Figure, file: Path) -> Path:
    """Writes a figure and returns its file. A figure that would exceed `MAX_SIDE_PX` has a lower resolution.

    Raises:
        OSError: the file cannot be written.
    """
    FigureCanvasAgg(figure)
    dpi = min(DPI, MAX_SIDE_PX / max(figure.get_size_inches()))
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names of classes and images may contain `$`
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # pages support all scripts
        figure.savefig(file, dpi=dpi, facecolor="white")
    return file
