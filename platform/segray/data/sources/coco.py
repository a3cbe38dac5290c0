"""COCO in its published layout: images and `annotations/` with panoptic PNGs and JSON, stuff JSON or instances JSON.

Category ids have gaps: the class id is the index of the category, ordered by category id. The JSON is held in memory.
"""

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segray.core.classes import Classes, default_palette
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.core.parsing import parse_json, summarize_error
from segray.data.source_masks import RasterBudget, decode_rgb, require_mask_size
from segray.data.sources.collector import MaskReader, SampleCollector
from segray.data.sources.files import (
    SourceFile,
    build_classes,
    glob_files,
    read_source_file,
    require_path,
    require_source_dir,
)
from segray.data.sources.sample import Ids, Json, SourceListing

LAYOUT = "train2017/, val2017/ and annotations/ with {kind}_train2017.json, {kind}_val2017.json"
YEAR = re.compile(r"_?\d{4}$")
BACKGROUND = "background"
MAX_OUTLINE = 64
"""Maximum length of the outline of an annotation, in multiples of height + width. pycocotools takes 160 bytes per
pixel. Lines at a distance of 8 px that fill an image of 640x480 are shorter."""
MAX_RUN_UNITS = 7
"""Maximum number of 5-bit units of a run length; the largest image needs 6."""
MAX_CATEGORY, EMPTY, VOID = 65533, 65534, 65535
"""Largest category id (MAX_CATEGORY), and the mask values of background (EMPTY) and ignored pixels (VOID)."""


def list_panoptic(source: str | None) -> SourceListing:
    """Lists the images with their panoptic segments as classes; pixels without a segment are ignored."""
    return _list_samples("panoptic", source)


def list_stuff(source: str | None) -> SourceListing:
    """Lists the images with their stuff annotations as classes; pixels without an annotation are ignored."""
    return _list_samples("stuff", source)


def list_instances(source: str | None) -> SourceListing:
    """Lists the images with their instances as classes after `background`, id 0; crowds are ignored."""
    return _list_samples("instances", source)


def _list_samples(kind: str, source: str | None) -> SourceListing:
    """Lists the samples of all JSON files of a kind.

    Raises:
        DataError: the folder or its JSON files do not exist, a file cannot be read, or files that it names are missing.
    """
    layout = LAYOUT.format(kind=kind)
    root = require_source_dir(f"coco-{kind}", source, layout)
    files = sorted(
        glob_files(require_path(root / "annotations", layout), f"{kind}_*.json"),
        key=lambda path: ("val" in path.stem, path),
    )
    if not files:
        raise DataError(f"{root / 'annotations'} contains no {kind}_*.json; expected {layout}.")
    collector, categories = SampleCollector(root), dict[int, str]()
    for file in files:
        try:
            content = parse_json(read_source_file(root, file))
            categories |= {int(category["id"]): str(category["name"]) for category in content["categories"]}
            _collect_images(kind, file, content, collector)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {summarize_error(error)}"
            raise DataError(f"{file} is not a COCO annotation file ({reason}).") from error
    _check_categories(root, categories)
    return collector.listing(*_classes(root, categories, kind == "instances"), absent_ok=True)


def _check_categories(root: Path, categories: dict[int, str]) -> None:
    invalid = [key for key in categories if not 0 <= key <= MAX_CATEGORY]
    if invalid:
        raise DataError(f"{root} has the category id {invalid[0]}; expected 0 to {MAX_CATEGORY}.")
    duplicates = [name for name, count in Counter([BACKGROUND, *categories.values()]).items() if count > 1]
    if duplicates:
        raise DataError(
            f"{root} has duplicate category names ({', '.join(duplicates)}); expected unique names other than "
            f"{BACKGROUND}."
        )


def _classes(root: Path, categories: dict[int, str], with_background: bool) -> tuple[Classes, dict[int, int | None]]:
    background = [BACKGROUND] if with_background else []
    lookup: dict[int, int | None] = {key: index for index, key in enumerate(sorted(categories), len(background))}
    names = (*background, *(categories[key] for key in sorted(categories)))
    palette = (*((0, 0, 0) for _ in background), *default_palette(len(categories)))
    return build_classes(root, names, palette), lookup | ({EMPTY: 0} if with_background else {}) | {VOID: None}


def _collect_images(kind: str, file: Path, content: Json, collector: SampleCollector) -> None:
    """Adds the images of a JSON file with their annotations."""
    folder = file.stem.removeprefix(f"{kind}_")
    split = YEAR.sub("", folder)
    annotations_by_image = defaultdict[int, list[Json]](list)
    for annotation in content["annotations"]:
        annotations_by_image[annotation["image_id"]].append(annotation)
    unknown = annotations_by_image.keys() - {image["id"] for image in content["images"]}
    if unknown:
        count = sum(len(annotations_by_image[image_id]) for image_id in unknown)
        collector.problems.append(
            f"{file}: {count} annotations have an image_id that is not listed, such as {min(unknown, key=str)!r}"
        )
    for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
        path = collector.root / folder / image["file_name"]
        annotations = annotations_by_image[image["id"]]
        if kind == "panoptic" and not annotations:
            collector.problems.append(f"{path}: no annotation in {file}; expected one")
            continue
        make = _panoptic_mask if kind == "panoptic" else partial(_annotation_mask, on_background=kind == "instances")
        name = str(Path(image["file_name"]).with_suffix(""))
        collector.add(split, name, path, *make(file, image, annotations))


def _panoptic_mask(file: Path, _image: Json, annotations: list[Json]) -> tuple[Path, MaskReader, None]:
    (annotation, *_) = annotations
    packed = _pack(annotation["segments_info"], ("id", "category_id"))
    return file.with_suffix("") / annotation["file_name"], partial(PanopticMask, packed=packed), None


def _annotation_mask(
    file: Path, image: Json, annotations: list[Json], on_background: bool
) -> tuple[Path, MaskReader, int]:
    name, size = f"{file}, image {image['id']}", (int(image["height"]), int(image["width"]))
    packed = _pack(annotations, ("segmentation", "category_id", "area", "iscrowd"))
    return file, partial(AnnotationMask, image=name, size=size, packed=packed, on_background=on_background), len(packed)


def _pack(annotations: list[Json], fields: tuple[str, ...]) -> bytes:
    """Packs the given fields of the annotations compactly, because the samples of all images are held in memory."""
    selected = [{name: annotation[name] for name in fields if name in annotation} for annotation in annotations]
    return zlib.compress(json.dumps(selected).encode())


@dataclass(frozen=True)
class PanopticMask:
    """Mask reader for a panoptic PNG, whose colours encode segment ids as R + 256 G + 65536 B.

    Attributes:
        file: panoptic PNG.
        packed: ids and categories of its segments.
    """

    file: SourceFile
    packed: bytes

    def __call__(self) -> Ids:
        """Returns the category ids, (H, W).

        Raises:
            DataError: the file is not an image, or contains a segment that the JSON does not list.
        """
        pixels = decode_rgb(self.file.read(), self.file.path).astype(np.int32)
        segments, inverse = np.unique(pixels @ np.array([1, 256, 65536], np.int32), return_inverse=True)
        category_of = {0: VOID} | dict(self._categories())
        unknown = [segment for segment in segments.tolist() if segment not in category_of]
        if unknown:
            raise DataError(f"{self.file.path} contains the segment {unknown[0]}, which its JSON file does not list")
        categories = np.array([category_of[segment] for segment in segments.tolist()], np.uint16)
        return categories[inverse].reshape(pixels.shape[:2])

    def _categories(self) -> Iterator[tuple[int, int]]:
        """Yields the id and the category of each segment."""
        for segment in json.loads(zlib.decompress(self.packed)):
            try:
                yield int(segment["id"]), _category(segment)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.file.path} has an invalid segment in its JSON file ({error!r})") from error


@dataclass(frozen=True)
class AnnotationMask:
    """Mask reader that rasterizes the polygons and RLEs of an image; smaller ones are drawn over larger ones.

    Attributes:
        file: JSON file that holds the annotations.
        image: name of the image for messages.
        size: size of the mask, (H, W).
        packed: annotations of the image.
        on_background: `True` to make pixels without an annotation background and to ignore crowds, `False` to ignore
            pixels without an annotation.
    """

    file: SourceFile
    image: str
    size: tuple[int, int]
    packed: bytes
    on_background: bool

    def __call__(self) -> Ids:
        """Returns the category ids, (H, W).

        Raises:
            DataError: a segmentation cannot be read.
        """
        require_mask_size(*self.size, self.image)
        height, width = self.size
        columns = np.full(height * width, EMPTY if self.on_background else VOID, np.uint16)
        for value, lengths in self._regions():
            ends = np.cumsum(lengths).tolist()
            for start, stop in zip(ends[::2], ends[1::2], strict=False):
                columns[start:stop] = value
        return np.ascontiguousarray(columns.reshape(width, height).T)

    def _regions(self) -> Iterator[tuple[int, list[int]]]:
        """Yields the mask value and the run lengths of each annotation."""
        annotations, budget = json.loads(zlib.decompress(self.packed)), RasterBudget()
        try:
            for annotation in sorted(annotations, key=lambda annotation: -float(annotation.get("area") or 0)):
                is_crowd = self.on_background and annotation.get("iscrowd")
                category = _category(annotation)
                lengths = _read_run_lengths(annotation["segmentation"], self.size, budget)
                budget.spend(sum(lengths[1::2]), len(lengths))
                yield VOID if is_crowd else category, lengths
        except Exception as error:  # pycocotools' C code raises arbitrary exceptions
            if is_out_of_memory(error):
                raise
            raise DataError(f"{self.image} has an invalid segmentation ({error!r})") from error


def _category(annotation: Json) -> int:
    category = int(annotation["category_id"])
    if not 0 <= category <= MAX_CATEGORY:
        raise ValueError(f"category_id {category}")
    return category


def _read_run_lengths(segmentation: Any, size: tuple[int, int], budget: RasterBudget) -> list[int]:
    """Returns the run lengths of a polygon or an RLE, column by column, alternately outside and inside.

    The input is validated first, because pycocotools' C code does not check it.

    Raises:
        ValueError: the segmentation is invalid, its size differs from the image, or it exceeds the budget.
    """
    from pycocotools import mask  # noqa: PLC0415 - only this format needs it

    if not segmentation:
        raise ValueError("empty segmentation")
    if isinstance(segmentation, list):
        budget.spend(0, _check_polygons(segmentation, size))
        return _decode_run_lengths(mask.merge(mask.frPyObjects(segmentation, *size))["counts"].decode())
    counts = segmentation["counts"]
    lengths = counts if isinstance(counts, list) else _decode_run_lengths(counts)
    _check_runs(lengths, segmentation["size"], size)
    return lengths


def _check_polygons(polygons: list[list[float]], size: tuple[int, int]) -> float:
    """Checks polygons, and returns the length of their outlines in pixels."""
    limit, outline = 2 * max(size), 0.0
    for corners in polygons:
        if len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"polygon with {len(corners)} numbers; expected an even number of at least 6")
        if not all(-limit <= float(number) <= limit for number in corners):  # NaN is rejected too
            raise ValueError("polygon far outside the image")
        points = np.array(corners, np.float64).reshape(-1, 2)
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
    if outline > MAX_OUTLINE * sum(size):
        raise ValueError(f"outline of {outline:.0f} pixels; expected at most {MAX_OUTLINE * sum(size)}")
    return outline


def _check_runs(lengths: list[int], stated_size: list[int], size: tuple[int, int]) -> None:
    if not all(type(number) is int for number in (*lengths, *stated_size)):
        raise ValueError("run lengths or size are not integers")
    if tuple(stated_size) != size:
        raise ValueError(f"size {stated_size[1]}x{stated_size[0]}; expected {size[1]}x{size[0]}")
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"runs with {sum(lengths)} pixels; expected {size[0] * size[1]}")


def _decode_run_lengths(counts: str) -> list[int]:
    """Decodes the run lengths of COCO's compressed string.

    Each number is a group of 5-bit units. From the fourth number on, it is the difference to the number two before.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in (ord(char) - 48 for char in counts):
        if shift == 5 * MAX_RUN_UNITS:  # otherwise, the time for one endless number is quadratic
            raise ValueError(f"run length of more than {MAX_RUN_UNITS} units")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("truncated run-length string")
    return lengths
