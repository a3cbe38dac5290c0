"""Colour-coded masks: the `folder` layout plus a `palette.txt` with one class per line, `R G B name`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segray.core.classes import Colour
from segray.core.errors import DataError
from segray.data.source_masks import decode_rgb
from segray.data.sources import folder
from segray.data.sources.collector import MaskReader, SampleCollector
from segray.data.sources.files import SourceFile, build_classes, read_lines, require_path, require_source_dir
from segray.data.sources.sample import Ids, SourceListing

PALETTE = "palette.txt"
LAYOUT = f"{folder.LAYOUT} (masks in RGB) and {PALETTE} (one class per line, `R G B name`)"
IGNORED = ("ignore", "void", "unlabelled", "unlabeled")
LINE = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*)")


@dataclass(frozen=True)
class ColourMask:
    """Mask reader that maps the colours of an image to ids.

    Attributes:
        file: RGB image.
        colours: colour of each id, in order.
    """

    file: SourceFile
    colours: tuple[Colour, ...]

    def __call__(self) -> Ids:
        """Returns the ids, (H, W).

        Raises:
            DataError: the file is not an image, or contains an unknown colour; the message names the first such pixel.
        """
        pixels = decode_rgb(self.file.read(), self.file.path)
        keys, ids = _colour_table(self.colours)
        packed = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        indices = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
        is_unknown = keys[indices] != packed
        if is_unknown.any():
            row, column = np.argwhere(is_unknown)[0].tolist()
            raise DataError(
                f"{self.file.path} contains the unknown colour {tuple(pixels[row, column].tolist())}, first at pixel "
                f"({column}, {row}), and {int(is_unknown.sum())} pixels of unknown colours in total; add them to the "
                "palette, or correct the mask"
            )
        class_ids: Ids = ids[indices]
        return class_ids


@lru_cache(maxsize=8)
def _colour_table(colours: tuple[Colour, ...]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Returns the colours as sorted numbers, and the id of each."""
    packed = np.array([red * 65536 + green * 256 + blue for red, green, blue in colours], np.int32)
    order = np.argsort(packed)
    return packed[order], order.astype(np.uint16)


def list_samples(source: str | None) -> SourceListing:
    """Lists the pairs; colours named ignore, void or unlabelled are ignored.

    Raises:
        DataError: the folder does not exist, the palette cannot be read, or files have no partner; all are listed.
    """
    root = require_source_dir("palette", source, LAYOUT)
    palette = read_palette(root, require_path(root / PALETTE, LAYOUT))
    ignored = [name for name in palette if name.lower() in IGNORED]
    return list_coloured(root / PALETTE, palette, ignored, lambda mask_reader: folder.list_pairs(root, mask_reader))


def list_coloured(
    origin: Path,
    palette: Mapping[str, Colour],
    ignored: Iterable[str],
    collect: Callable[[MaskReader], SampleCollector],
) -> SourceListing:
    """Builds the listing of a source with colour-coded masks.

    Args:
        origin: file that defines the palette, for messages.
        palette: colour of each name.
        ignored: names of ignored colours.
        collect: function that collects the samples with the given mask reader factory.
    """
    ignored_names = set(ignored)
    names = [name for name in palette if name not in ignored_names]
    colours = tuple(palette[name] for name in [*names, *(name for name in palette if name in ignored_names)])
    collector = collect(lambda file: ColourMask(file, colours))
    lookup = {index: index if index < len(names) else None for index in range(len(colours))}
    classes = build_classes(origin, names, colours[: len(names)])
    return collector.listing(classes, lookup, absent_ok=True)


def read_palette(root: Path, file: Path) -> dict[str, Colour]:
    """Reads the colour of each name, in order.

    Raises:
        DataError: a line is invalid, or a name or colour occurs twice.
    """
    palette: dict[str, Colour] = {}
    for number, line in enumerate(read_lines(file, root), 1):
        match = LINE.fullmatch(line)
        colour = tuple(int(part) for part in match.groups()[:3]) if match else (256,)
        if match is None or max(colour) > 255:
            raise DataError(f"{file} line {number} is {line!r}; expected `R G B name`, each 0 to 255.")
        if match[4] in palette or colour in palette.values():
            raise DataError(f"{file} line {number} is {line!r}; its name or colour is a duplicate.")
        palette[match[4]] = (colour[0], colour[1], colour[2])
    return palette
