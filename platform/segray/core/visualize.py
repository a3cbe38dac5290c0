"""Pictures of predictions: image, truth and what was found, side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segray.core.classes import Classes

Pixels = NDArray[np.uint8]
Ids = NDArray[np.integer]

WIDTH = 320  # px of a column
HEADER = 16
COLUMNS = ("image", "truth", "prediction")
IGNORED = (255, 255, 255)
LINE = 16  # px of a line of text
BACK, TEXT = (24, 24, 24), (230, 230, 230)


class PreviewRow(NamedTuple):
    """A row of the picture: the image (H', W', 3) uint8 RGB, and the ids (H, W) that are true and that were found."""

    image: Pixels
    truth: Ids
    prediction: Ids


def save_previews(rows: Sequence[PreviewRow], classes: Classes, file: Path) -> None:
    """Writes a PNG of the rows; ignored pixels are white in the truth."""
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
    """Returns ids (H, W) in the classes' colours, (H, W, 3)."""
    colours = np.full((classes.ignore_id + 1, 3), IGNORED, np.uint8)
    colours[: classes.num_classes] = classes.palette
    return colours[ids]


def draw_overlay(image: Pixels, ids: Ids, classes: Classes, share: float = 0.5) -> Pixels:
    """Returns an image (H, W, 3) with the colours of its ids (H, W) laid over it, of which `share` is seen."""
    mixed = image * (1 - share) + colorize(ids, classes) * share
    return np.round(mixed).astype(np.uint8)


def _strip(pictures: Iterable[Pixels]) -> Image.Image:
    first, *others = (Image.fromarray(picture) for picture in pictures)
    height = round(others[0].height * WIDTH / others[0].width)
    strip = Image.new("RGB", (WIDTH * (1 + len(others)), height))
    strip.paste(first.resize((WIDTH, height)), (0, 0))
    for number, mask in enumerate(others, 1):
        strip.paste(mask.resize((WIDTH, height), Image.Resampling.NEAREST), (WIDTH * number, 0))
    return strip


def draw_legend(classes: Classes, width: int) -> Image.Image:
    """Returns the names in columns, each beside its colour."""
    column = 180
    across = width // column
    names = [*zip(classes.names, classes.palette, strict=True), ("not counted", (255, 255, 255))]
    legend = Image.new("RGB", (width, LINE * (2 + (len(names) - 1) // across)), BACK)
    pen = ImageDraw.Draw(legend)
    for number, (name, colour) in enumerate(names):
        left, top = number % across * column, LINE // 2 + number // across * LINE
        pen.rectangle((left + 4, top + 2, left + 14, top + 12), fill=colour)
        pen.text((left + 20, top + 1), name[:24], TEXT)
    return legend
