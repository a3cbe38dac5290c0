"""COCO in its published layout: images and `annotations/` with panoptic PNGs and JSON, stuff JSON or instances JSON.

Category ids have gaps, so the class id is the index of the category, ordered by category id. The JSON is held in memory
while samples are listed, as in pycocotools.
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
from numpy.typing import NDArray

from segray.core.classes import Classes, default_palette
from segray.core.errors import DataError
from segray.data.normalize import decode_rgb, require_mask_size
from segray.data.sources.files import MaskReader, SampleCollector, SourceFile, require_path, require_source_dir
from segray.data.sources.sample import Ids, Json, SourceListing

LAYOUT = "train2017/, val2017/ and annotations/ with {kind}_train2017.json, {kind}_val2017.json"
YEAR = re.compile(r"_?\d{4}$")
BACKGROUND = "background"
MAX_CATEGORY, EMPTY, VOID = 65533, 65534, 65535
"""Largest category id (MAX_CATEGORY), and the mask values of background (EMPTY) and ignored pixels (VOID)."""


def list_panoptic(source: str | None) -> SourceListing:
    """Lists the images with their panoptic segments as classes; pixels without a segment are ignored."""
    return _find("panoptic", source)


def list_stuff(source: str | None) -> SourceListing:
    """Lists the images with their stuff annotations as classes; pixels without an annotation are ignored."""
    return _find("stuff", source)


def list_instances(source: str | None) -> SourceListing:
    """Lists the images with their instances as classes after `background`, id 0; crowds are ignored."""
    return _find("instances", source)


def _find(kind: str, source: str | None) -> SourceListing:
    """Lists the samples of all JSON files of a kind.

    Raises:
        DataError: the folder or its JSON files do not exist, a file cannot be read, or files that it names are missing.
    """
    layout = LAYOUT.format(kind=kind)
    root = require_source_dir(f"coco-{kind}", source, layout)
    files = sorted(
        require_path(root / "annotations", layout).glob(f"{kind}_*.json"), key=lambda path: ("val" in path.stem, path)
    )
    if not files:
        raise DataError(f"{root / 'annotations'} holds no {kind}_*.json; expected {layout}.")
    collected, categories = SampleCollector(root), dict[int, str]()
    for file in files:
        try:
            content = json.loads(file.read_bytes())
            categories |= {int(category["id"]): str(category["name"]) for category in content["categories"]}
            _collect(kind, file, content, collected)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{file} is no COCO annotation file ({error!r}).") from error
    _check_categories(root, categories)
    return collected.listing(*_classes(categories, kind == "instances"), absent_ok=True)


def _check_categories(root: Path, categories: dict[int, str]) -> None:
    strange = [key for key in categories if not 0 <= key <= MAX_CATEGORY]
    if strange:
        raise DataError(f"{root} has the category {strange[0]}; expected ids from 0 to {MAX_CATEGORY}.")
    twice = [name for name, count in Counter([BACKGROUND, *categories.values()]).items() if count > 1]
    if twice:
        raise DataError(
            f"{root} has the category {', '.join(twice)} more than once ({BACKGROUND} is taken); expected names that "
            "differ, and each with one id."
        )


def _classes(categories: dict[int, str], with_background: bool) -> tuple[Classes, dict[int, int | None]]:
    background = [BACKGROUND] if with_background else []
    lookup: dict[int, int | None] = {key: index for index, key in enumerate(sorted(categories), len(background))}
    names = (*background, *(categories[key] for key in sorted(categories)))
    palette = (*((0, 0, 0) for _ in background), *default_palette(len(categories)))
    return Classes(names=names, palette=palette), lookup | ({EMPTY: 0} if with_background else {}) | {VOID: None}


def _collect(kind: str, file: Path, content: Json, collected: SampleCollector) -> None:
    """Adds the images of a JSON file with their annotations."""
    folder = file.stem.removeprefix(f"{kind}_")
    split = YEAR.sub("", folder)
    of_image = defaultdict[int, list[Json]](list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    strange = of_image.keys() - {image["id"] for image in content["images"]}
    if strange:
        many = sum(len(of_image[image]) for image in strange)
        collected.problems.append(
            f"{file}: {many} annotations of images that it does not hold, such as {min(strange, key=str)!r}"
        )
    for image in sorted(content["images"], key=lambda one: str(one["file_name"])):
        path = collected.root / folder / image["file_name"]
        annotations = of_image[image["id"]]
        if kind == "panoptic" and not annotations:
            collected.problems.append(f"{path}: no annotation in {file}; expected its segments")
            continue
        make = _segments if kind == "panoptic" else partial(_shapes, on_background=kind == "instances")
        name = str(Path(image["file_name"]).with_suffix(""))
        collected.add(split, name, path, *make(file, image, annotations))


def _segments(file: Path, _image: Json, annotations: list[Json]) -> tuple[Path, MaskReader, None]:
    (annotation, *_) = annotations
    packed = _packed(annotation["segments_info"], ("id", "category_id"))
    return file.with_suffix("") / annotation["file_name"], partial(PanopticMask, packed=packed), None


def _shapes(file: Path, image: Json, annotations: list[Json], on_background: bool) -> tuple[Path, MaskReader, int]:
    name, size = f"{file}, image {image['id']}", (int(image["height"]), int(image["width"]))
    packed = _packed(annotations, ("segmentation", "category_id", "area", "iscrowd"))
    return file, partial(AnnotationMask, image=name, size=size, packed=packed, on_background=on_background), len(packed)


def _packed(annotations: list[Json], fields: tuple[str, ...]) -> bytes:
    """Packs the given fields of the annotations compactly, because the samples of all images are held in memory."""
    kept = [{name: one[name] for name in fields if name in one} for one in annotations]
    return zlib.compress(json.dumps(kept).encode())


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
        present, at = np.unique(pixels @ np.array([1, 256, 65536], np.int32), return_inverse=True)
        known = {0: VOID} | dict(self._segments())
        unknown = [segment for segment in present.tolist() if segment not in known]
        if unknown:
            raise DataError(f"{self.file.path} holds the segment {unknown[0]}, which the JSON beside it does not know")
        return np.array([known[one] for one in present.tolist()], np.uint16)[at].reshape(pixels.shape[:2])

    def _segments(self) -> Iterator[tuple[int, int]]:
        for one in json.loads(zlib.decompress(self.packed)):
            try:
                yield int(one["id"]), _category(one)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self.file.path} has a segment in the JSON that cannot be read ({error!r})"
                ) from error


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
        ids = np.full(self.size, EMPTY if self.on_background else VOID, np.uint16)
        for value, inside in self._regions():
            ids[inside] = value
        return ids

    def _regions(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        annotations = json.loads(zlib.decompress(self.packed))
        try:
            for annotation in sorted(annotations, key=lambda one: -float(one.get("area") or 0)):
                is_crowd = self.on_background and annotation.get("iscrowd")
                category = _category(annotation)
                yield VOID if is_crowd else category, _decoded(annotation["segmentation"], self.size)
        except Exception as error:  # pycocotools' C code raises arbitrary exceptions
            raise DataError(f"{self.image} has a segmentation that cannot be read ({error!r})") from error


def _category(annotation: Json) -> int:
    found = int(annotation["category_id"])
    if not 0 <= found <= MAX_CATEGORY:
        raise ValueError(f"category_id {found}")
    return found


def _decoded(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decodes a polygon or an RLE to a boolean mask; raises ValueError if its size differs from the image.

    The input is validated first, because pycocotools' C code does not check it.
    """
    from pycocotools import mask  # noqa: PLC0415 - only this format needs it

    if not segmentation:
        raise ValueError("an empty segmentation")
    if isinstance(segmentation, list):
        _check_polygons(segmentation, size)
        runs = mask.merge(mask.frPyObjects(segmentation, *size))
    else:
        counts = segmentation["counts"]
        _check_runs(counts if isinstance(counts, list) else _lengths(counts), segmentation["size"], size)
        runs = mask.frPyObjects(segmentation, *size) if isinstance(counts, list) else segmentation
    decoded: NDArray[np.bool_] = mask.decode(runs).astype(bool)
    return decoded


def _check_polygons(polygons: list[list[float]], size: tuple[int, int]) -> None:
    most = 2 * max(size)
    for corners in polygons:
        if len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"a polygon of {len(corners)} numbers")
        if not all(-most <= float(number) <= most for number in corners):  # NaN is rejected too
            raise ValueError("a polygon that leaves the image by far")


def _check_runs(lengths: list[int], said: list[int], size: tuple[int, int]) -> None:
    if not all(type(number) is int for number in (*lengths, *said)):
        raise ValueError("runs or a size that are no whole numbers")
    if tuple(said) != size:
        raise ValueError(f"of {said[1]}x{said[0]}; expected {size[1]}x{size[0]}")
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"runs of {sum(lengths)} pixels; expected {size[0] * size[1]}")


def _lengths(counts: str) -> list[int]:
    """Decodes the run lengths of COCO's compressed string.

    Each number is a group of 5-bit units. From the fourth number on, it is the difference to the number two before.
    """
    found: list[int] = []
    value = shift = 0
    for code in (ord(char) - 48 for char in counts):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a string of runs that is cut off")
    return found
