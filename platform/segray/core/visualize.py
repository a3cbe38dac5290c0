"""Images of predictions: image, ground truth and prediction side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segray.core.classes import Classes

Pixels = NDArray[np.uint8]
Ids = NDArray[np.integer]

WIDTH = 320  # width of a column in px
MAX_HEIGHT = 4 * WIDTH  # height of a row in px; a narrower image has a smaller width
HEADER = 16
COLUMNS = ("image", "truth", "prediction")
IGNORED = (255, 255, 255)
LINE = 16  # height of a line of text in px
BACK, TEXT = (24, 24, 24), (230, 230, 230)


class PreviewRow(NamedTuple):
    """A row of the preview.

    Attributes:
        image: RGB image (H', W', 3) uint8.
        truth: ground truth ids (H, W).
        prediction: predicted ids (H, W).
    """

    image: Pixels
    truth: Ids
    prediction: Ids


def save_previews(rows: Sequence[PreviewRow], classes: Classes, file: Path) -> None:
    """Writes the rows as a PNG. Ignored pixels of the ground truth are white."""
    file.parent.mkdir(exist_ok=True)
    strips = [_strip((row.image, colorize(row.truth, classes), colorize(row.prediction, classes))) for row in rows]
    sheet = Image.new("RGB", (strips[0].width, HEADER + sum(strip.height for strip in strips)))
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(COLUMNS):
        draw.text((number * WIDTH + 4, 2), title)
    top = HEADER
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(file)


def colorize(ids: Ids, classes: Classes) -> Pixels:
    """Returns ids (H, W) as an image (H, W, 3) in the colours of their classes."""
    colours = np.full((classes.ignore_id + 1, 3), IGNORED, np.uint8)
    colours[: classes.num_classes] = classes.palette
    return colours[ids]


def draw_overlay(image: Pixels, ids: Ids, classes: Classes, opacity: float = 0.5) -> Pixels:
    """Returns an image blended with the colours of its ids.

    Args:
        image: image (H, W, 3).
        ids: class ids (H, W).
        classes: classes that define the colours.
        opacity: opacity of the colours, 0..1.
    """
    blended = image * (1 - opacity) + colorize(ids, classes) * opacity
    return np.round(blended).astype(np.uint8)


def _strip(images: Iterable[Pixels]) -> Image.Image:
    first, *others = (Image.fromarray(image) for image in images)
    size = fit_size(others[0].width, others[0].height, WIDTH, MAX_HEIGHT)
    strip = Image.new("RGB", (WIDTH * (1 + len(others)), size[1]))
    strip.paste(first.resize(size), (0, 0))
    for number, mask in enumerate(others, 1):
        strip.paste(mask.resize(size, Image.Resampling.NEAREST), (WIDTH * number, 0))
    return strip


def fit_size(width: int, height: int, max_width: int, max_height: int) -> tuple[int, int]:
    """Returns the largest (width, height) of the same aspect ratio within the maxima, each at least 1."""
    scale = min(max_width / width, max_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw_legend(classes: Classes, width: int) -> Image.Image:
    """Returns an image of the class names in columns, each next to its colour.

    Args:
        classes: classes of the legend.
        width: width of the image in px.
    """
    column = 180
    across = width // column
    names = [*zip(classes.names, classes.palette, strict=True), ("ignored", IGNORED)]
    legend = Image.new("RGB", (width, LINE * (2 + (len(names) - 1) // across)), BACK)
    draw = ImageDraw.Draw(legend)
    for index, (name, colour) in enumerate(names):
        left, top = index % across * column, LINE // 2 + index // across * LINE
        draw.rectangle((left + 4, top + 2, left + 14, top + 12), fill=colour)
        draw.text((left + 20, top + 1), name[:24], TEXT)
    return legend
