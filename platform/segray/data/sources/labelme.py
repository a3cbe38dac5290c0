"""LabelMe: images with polygon JSON files of the same name, in one folder per split or in a single folder."""

from base64 import b64decode
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from segray.core.classes import default_palette, read_class_names
from segray.core.errors import DataError
from segray.core.parsing import parse_json, summarize_error
from segray.data.source_masks import RasterBudget, decode_source_mask, require_mask_size
from segray.data.sources.collector import SampleCollector
from segray.data.sources.files import (
    SourceFile,
    build_classes,
    glob_files,
    read_source_file,
    require_source_dir,
    require_source_file,
    sort_splits,
)
from segray.data.sources.sample import UNSPLIT, Ids, Json, SourceListing

LAYOUT = "<split>/*.json, each with its image beside it; labels.txt names the classes in order"
BACKGROUND, IGNORED = "_background_", "__ignore__"
LABELS = "labels.txt"
VOID = 65535
CORNERS = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1, "mask": 2}
"""Kinds of shapes, and the minimum number of points of each."""
SHAPE = ("label", "points", "shape_type", "mask")
MAX_COORDINATE = 2**20
"""Maximum coordinate of a point in pixels; a larger value is an error."""
MAX_ELLIPSE = 2**16
"""Maximum radius in pixels of an ellipse that Pillow draws; its time grows without bound beyond 2**18."""
MASK_WORK, DISC_WORK = 4, 8
"""Work for one pixel of an embedded mask and of a large circle, in filled pixels."""


def list_samples(source: str | None) -> SourceListing:
    """Lists the images that have a JSON file; classes come from labels.txt, otherwise from the sorted labels.

    The background is class 0, `_background_`. Shapes labelled `__ignore__` are ignored. Shapes are drawn in file order,
    later ones over earlier ones.

    Raises:
        DataError: the folder does not exist, or a JSON file or its image cannot be used; all such files are listed.
    """
    root = require_source_dir("labelme", source, LAYOUT)
    collector = SampleCollector(root)
    files = _list_files(root)
    for file in sorted(set(glob_files(root, "*.json")) - set(files)):
        collector.problems.append(f"{file}: not in the folder of a split; move it into one")
    images, labels = dict[Path, Path](), set[str]()
    for file in files:
        try:
            content = _parse(read_source_file(root, file))
        except DataError as error:
            collector.problems.append(str(error))
        except ValueError as error:
            collector.problems.append(f"{file}: not a LabelMe file ({summarize_error(error)})")
        else:
            images[file] = file.parent / content["imagePath"].replace("\\", "/")
            labels |= {shape["label"] for shape in content["shapes"]}
    class_names = (
        read_class_names(require_source_file(root, root / LABELS)) if (root / LABELS).exists() else sorted(labels)
    )
    names = (BACKGROUND, *(name for name in class_names if name not in (BACKGROUND, IGNORED)))
    for file, image in images.items():
        split = file.parent.name if file.parent != root else UNSPLIT
        collector.add(split, file.stem, image, file, partial(PolygonMask, names=names))
    classes = build_classes(root, names, ((0, 0, 0), *default_palette(len(names) - 1)))
    return collector.listing(classes, absent_ok=True)


def _list_files(root: Path) -> list[Path]:
    splits = sort_splits(path.parent.name for path in glob_files(root, "*/*.json"))
    folders = [root / split for split in splits] or [root]
    return [file for folder in folders for file in glob_files(folder, "*.json")]


def _parse(content: bytes) -> Json:
    """Parses a LabelMe file; raises ValueError if it is not one."""
    try:
        parsed: Json = parse_json(content)
        sizes = {name: int(parsed[name]) for name in ("imageHeight", "imageWidth")}
        shapes = [{name: shape.get(name) for name in SHAPE} for shape in parsed["shapes"]]
        for shape in shapes:
            shape["label"] = str(shape["label"])
        return {"imagePath": str(parsed["imagePath"]), "shapes": shapes} | sizes
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class PolygonMask:
    """Mask reader that rasterizes the shapes of a LabelMe file.

    Attributes:
        file: JSON file.
        names: class names in the order of their ids.
    """

    file: SourceFile
    names: tuple[str, ...]

    def __call__(self) -> Ids:
        """Returns the ids, (H, W).

        Raises:
            DataError: a label is not a class, or LabelMe does not support a shape.
        """
        try:
            content = _parse(self.file.read())
        except ValueError as error:
            raise DataError(f"{self.file.path} is not a LabelMe file ({summarize_error(error)})") from error
        require_mask_size(content["imageHeight"], content["imageWidth"], self.file.path)
        id_of = {label: index for index, label in enumerate(self.names)} | {IGNORED: VOID}
        canvas = Image.new("I", (content["imageWidth"], content["imageHeight"]), 0)
        budget = RasterBudget()
        for shape in content["shapes"]:
            if shape["label"] not in id_of:
                raise DataError(
                    f"{self.file.path} has the label {shape['label']!r}, which is not a class; add it to {LABELS}"
                )
            try:
                self._draw(canvas, shape, id_of[shape["label"]], budget)
            except ValueError as error:
                raise DataError(f"{self.file.path} has {error}") from error
        return np.asarray(canvas).astype(np.uint16)

    def _parse_points(self, shape: Json, kind: str) -> list[tuple[float, float]]:
        try:
            points = [(float(x), float(y)) for x, y in shape["points"]]
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.file.path} has a shape with invalid points ({error})") from error
        if kind not in CORNERS or len(points) < CORNERS[kind]:
            raise DataError(
                f"{self.file.path} has a {kind} with {len(points)} points; expected one of "
                f"{', '.join(f'{name} (at least {count})' for name, count in CORNERS.items())}"
            )
        if not all(abs(number) <= MAX_COORDINATE for point in points for number in point):  # NaN is rejected too
            raise DataError(f"{self.file.path} has a {kind} with a coordinate beyond {MAX_COORDINATE}: {points}")
        return points

    def _draw(self, canvas: Image.Image, shape: Json, value: int, budget: RasterBudget) -> None:
        pen = ImageDraw.Draw(canvas)
        kind = str(shape["shape_type"] or "polygon")
        points = self._parse_points(shape, kind)
        budget.spend(*_measure_work(kind, points, canvas.size))
        if kind == "polygon":
            pen.polygon(points, fill=value, outline=value)
        elif kind == "rectangle":
            (x, y), (u, v) = points[:2]
            pen.rectangle((min(x, u), min(y, v), max(x, u), max(y, v)), fill=value, outline=value)
        elif kind == "circle":  # the centre and a point on the circle
            (x, y), (u, v) = points[:2]
            radius = ((x - u) ** 2 + (y - v) ** 2) ** 0.5
            if radius > MAX_ELLIPSE:
                canvas.paste(value, mask=_disc(canvas.size, x, y, radius))
            else:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value, outline=value)
        elif kind == "mask":  # a PNG placed between two corners
            (x, y), _ = points[:2]
            inside = self._decode_mask(shape["mask"])
            budget.spend(MASK_WORK * inside.width * inside.height)
            canvas.paste(value, (round(x), round(y)), inside)
        elif kind == "point":
            pen.point(points, fill=value)
        else:
            pen.line(points, fill=value)

    def _decode_mask(self, encoded: str | None) -> Image.Image:
        try:
            pixels = decode_source_mask(b64decode(encoded or "", validate=True), f"{self.file.path} (embedded mask)")
        except ValueError as error:
            raise DataError(f"{self.file.path} has a mask that is not valid base64 ({error})") from error
        return Image.fromarray((pixels > 0).astype(np.uint8) * 255)


def _measure_work(kind: str, points: list[tuple[float, float]], size: tuple[int, int]) -> tuple[float, float]:
    """Returns the arguments of `RasterBudget.spend` for a shape: upper bounds for what Pillow fills and traces."""
    corners = np.array(points)
    outline = float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
    if kind in {"line", "linestrip", "point", "mask"}:
        return len(points), outline
    if kind == "circle":
        radius = float(np.hypot(*(corners[0] - corners[1])))
        if radius > MAX_ELLIPSE:  # see _disc
            return DISC_WORK * size[0] * size[1], 0
        corners, outline = np.array([corners[0] - radius, corners[0] + radius]), 8 * radius
    limits = np.array(size) - 1
    width, height = np.ptp(np.clip(corners, 0, limits), axis=0) + 1
    # In every row, Pillow compares the row with all edges of a polygon.
    return height * (width + len(points)), outline


def _disc(size: tuple[int, int], x: float, y: float, radius: float) -> Image.Image:
    """Returns the mask of the pixels in a circle."""
    columns, rows = np.arange(size[0]), np.arange(size[1])[:, None]
    return Image.fromarray((columns - x) ** 2 <= radius**2 - (rows - y) ** 2)
