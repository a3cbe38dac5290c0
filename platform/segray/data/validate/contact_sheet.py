"""Contact sheet: images of every split, overlaid with their masks, and a colour legend."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from segray.core.classes import Classes
from segray.core.visualize import BACK, LINE, TEXT, draw_legend, draw_overlay
from segray.data.images import decode_image, decode_mask
from segray.data.manifest import Manifest
from segray.data.reader import SplitReader

CELL = (240, 180)
COLUMNS = 6
PER_SPLIT = 12


def save_contact_sheet(root: str, manifest: Manifest, file: Path, per_split: int = PER_SPLIT) -> None:
    """Writes a PNG with images sampled evenly from every split; a row that cannot be read gets a placeholder cell."""
    width = COLUMNS * CELL[0]
    strips = [
        _draw_split(SplitReader(root, split), name, manifest.classes, per_split)
        for name, split in manifest.splits.items()
    ]
    strips.append(draw_legend(manifest.classes, width))
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), BACK)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(file)


def _draw_split(source: SplitReader, name: str, classes: Classes, count: int) -> Image.Image:
    rows = np.unique(np.linspace(0, source.split.rows - 1, min(count, source.split.rows)).round().astype(int)).tolist()
    cell_height = CELL[1] + LINE
    strip = Image.new("RGB", (COLUMNS * CELL[0], LINE + -(-len(rows) // COLUMNS) * cell_height), BACK)
    pen = ImageDraw.Draw(strip)
    pen.text((4, 2), f"{name}: {len(rows)} of {source.split.rows} images", TEXT)
    for number, row in enumerate(rows):
        left, top = number % COLUMNS * CELL[0], LINE + number // COLUMNS * cell_height
        try:
            label, overlay = _overlay_row(source, row, classes)
        except Exception:  # arbitrary damage; the validation reports the cause
            pen.text((left + 4, top + CELL[1] // 2), f"row {row} cannot be decoded", TEXT)
            continue
        overlay = ImageOps.pad(overlay, (CELL[0] - 4, CELL[1] - 2), color=BACK)
        strip.paste(overlay, (left + 2, top))
        pen.text((left + 4, top + CELL[1]), label[-CELL[0] // 7 :], TEXT)
    return strip


def _overlay_row(source: SplitReader, row: int, classes: Classes) -> tuple[str, Image.Image]:
    table = source.read([int(source.groups_of_rows([row])[0])])
    index = table["row"].to_pylist().index(row)
    image, mask = (table[column][index].as_py() for column in ("image", "mask"))
    return str(table["id"][index].as_py()), Image.fromarray(
        draw_overlay(decode_image(image), decode_mask(mask), classes)
    )
