"""Readers of source datasets: every format of `prepare`, from the folder to a dataset that is validated."""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from PIL import Image

from segray.core.classes import Classes, read_class_names
from segray.core.errors import UserError
from segray.data.convert import convert
from segray.data.convert.labels import read_class_map
from segray.data.convert.metadata import add_columns
from segray.data.convert.splits import assign_splits
from segray.data.images import decode_image, decode_mask
from segray.data.manifest import read_manifest
from segray.data.normalize import normalize_image
from segray.data.reader import SplitReader
from segray.data.source_masks import decode_rgb, decode_source_mask
from segray.data.sources import ade20k, cityscapes
from segray.data.sources.formats import SOURCES
from segray.data.sources.sample import UNSPLIT
from segray.data.validate import dataset

from .images import HEIGHT, WIDTH, hostile_image, mask_ids, save, seed_images, seed_masks
from .reader import Files, Reader

MAX_PIXELS = 2**27
NAMES = ("road", "car", "sky")
PACKED_RUNS = "b1n0P?"


@contextmanager
def tasks_in_this_process() -> Iterator[None]:
    """Runs the tasks of conversion and validation in this process instead of a Ray cluster."""

    def map_inputs(function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        return ((index, function(value)) for index, value in enumerate(inputs))

    with patch.object(convert, "map_on_cluster", map_inputs), patch.object(dataset, "map_on_cluster", map_inputs):
        yield


def read_source(kind: str) -> Callable[[Random, Path, Path], None]:
    def read(draw: Random, source: Path, target: Path) -> None:
        out = str(target / "dataset")
        listing = SOURCES[kind](str(source))
        if any(sample.split == UNSPLIT for sample in listing.samples):
            listing = convert.SourceListing(
                assign_splits(listing.samples, {"train": 0.5, "val": 0.5}),
                *(listing.classes, listing.lookup, listing.absent_ok, listing.problems),
            )
        with tasks_in_this_process():
            convert.convert_dataset(listing, out, on_bad=draw.choice(("fail", "skip", "skip")))
            report = dataset.validate_dataset(out)
        errors = [line for line in report.errors if "the same image in" not in line]
        assert not errors, f"the converted dataset is invalid: {errors[:3]}"
        for split in read_manifest(out).splits.values():
            reader = SplitReader(out, split)
            table = reader.read(range(len(reader.rows_per_group())))
            for image, mask in zip(table["image"].to_pylist(), table["mask"].to_pylist(), strict=True):
                assert decode_image(image).shape[:2] == decode_mask(mask).shape

    return read


def pair(draw: Random) -> tuple[bytes, bytes]:
    image = draw.choice([data for name, data in seed_images().items() if name.endswith((".jpg", ".png", ".webp"))])
    return image, seed_masks()[draw.choice(("grey.png", "palette.png", "grey16.png"))]


def folder_files(draw: Random) -> Files:
    images, masks = draw.choice((("images", "masks"), ("img_dir", "ann_dir")))
    files: dict[str, Any] = {"classes.txt": "\n".join(NAMES)}
    listed = draw.random() < 0.3
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        image, mask = pair(draw)
        place = "" if listed else f"{split}/"
        files |= {f"{images}/{place}{stem}.png": image, f"{masks}/{place}{stem}.png": mask}
    return files | ({"train.txt": "a\nb", "val.txt": "c.png"} if listed else {})


def coloured_mask() -> bytes:
    palette = np.array([(128, 0, 0), (0, 128, 0), (0, 0, 128)] + [(9, 9, 9)] * 253, np.uint8)
    return save(Image.fromarray(palette[mask_ids()]), "PNG")


PALETTE_LINES = "128 0 0 road\n0, 128, 0, car\n0 0 128 sky\n9 9 9 void"


def palette_files(draw: Random) -> Files:
    files: dict[str, Any] = {"palette.txt": PALETTE_LINES}
    for split, stem in (("train", "a"), ("val", "c")):
        files |= {f"images/{split}/{stem}.png": pair(draw)[0], f"masks/{split}/{stem}.png": coloured_mask()}
    return files


def camvid_files(draw: Random) -> Files:
    if draw.random() < 0.5:
        files: dict[str, Any] = {}
        for split in ("train", "val"):
            files[f"{split}.txt"] = f"/SegNet/{split}/a.png /SegNet/{split}annot/a.png"
            files |= {
                f"{split}/a.png": pair(draw)[0],
                f"{split}annot/a.png": save(Image.fromarray(mask_ids() % 11), "PNG"),
            }
        return files
    files = {"label_colors.txt": PALETTE_LINES.replace("void", "Void").replace(",", "")}
    for stem in ("a", "b"):
        files |= {f"701_StillsRaw_full/{stem}.png": pair(draw)[0]}
        files |= {f"LabeledApproved_full/{stem}_L.png": coloured_mask()}
    return files


def cityscapes_files(draw: Random) -> Files:
    suffix = draw.choice(cityscapes.MASK_SUFFIXES)
    mask = save(Image.fromarray(np.where(mask_ids() == 255, 0, mask_ids() + 7).astype(np.uint8)), "PNG")
    files: dict[str, Any] = {}
    for split, city in (("train", "aachen"), ("val", "bonn")):
        files[f"leftImg8bit/{split}/{city}/{city}_0_leftImg8bit.png"] = pair(draw)[0]
        files[f"gtFine/{split}/{city}/{city}_0{suffix}.png"] = mask
    return files


def ade20k_files(draw: Random) -> Files:
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        *(f"{number}\t0.1\t1\t1\t0\tname {number}, other" for number in range(1, 151)),
    ]
    files: dict[str, Any] = {ade20k.NAMES: "\n".join(lines)}
    for folder in ("training", "validation"):
        files[f"images/{folder}/a.jpg"] = seed_images()["rgb.jpg"]
        files[f"annotations/{folder}/a.png"] = save(Image.fromarray(mask_ids() % 150), "PNG")
    return files


def voc_files(draw: Random) -> Files:
    files: dict[str, Any] = {}
    for split in ("train", "val"):
        files[f"ImageSets/Segmentation/{split}.txt"] = f"{split}_1\n{split}_2"
        for number in (1, 2):
            files[f"JPEGImages/{split}_{number}.jpg"] = seed_images()[draw.choice(("rgb.jpg", "cmyk.jpg", "grey.jpg"))]
            files[f"SegmentationClass/{split}_{number}.png"] = seed_masks()["palette.png"]
    return files


def coco_files(kind: str) -> Callable[[Random], Files]:
    def build(draw: Random) -> Files:
        files: dict[str, Any] = {}
        categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
        for split, number in (("train", 9), ("val", 13)):
            name = f"{number:012d}"
            files[f"{split}2017/{name}.jpg"] = seed_images()["rgb.jpg"]
            image = {"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
            annotations = _coco_annotations(kind, number, name)
            if kind == "panoptic":
                colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
                colours[..., 0], colours[5:, 5:, 0] = 7, 8
                files[f"annotations/panoptic_{split}2017/{name}.png"] = save(Image.fromarray(colours), "PNG")
            content = {"images": [image], "annotations": annotations, "categories": categories}
            files[f"annotations/{kind}_{split}2017.json"] = content
        return files

    return build


def _coco_annotations(kind: str, number: int, name: str) -> list[dict[str, Any]]:
    if kind == "panoptic":
        segments = [{"id": 7, "category_id": 1, "area": 3, "iscrowd": 0}, {"id": 8, "category_id": 18}]
        return [{"image_id": number, "file_name": f"{name}.png", "segments_info": segments}]
    polygon = {"segmentation": [[1, 1, 20, 1, 20, 15, 1, 15]], "area": 266.0, "iscrowd": 0, "bbox": [1, 1, 19, 14]}
    runs = {"counts": [50, 30, HEIGHT * WIDTH - 80], "size": [HEIGHT, WIDTH]}
    packed = {"counts": PACKED_RUNS, "size": [HEIGHT, WIDTH]}
    crowd = {"segmentation": runs, "area": 30, "iscrowd": 1}
    other = {"segmentation": [[0, 0, 5, 0, 5, 5]], "area": 12, "category_id": 18}
    packed_shape = {"segmentation": packed, "category_id": 1, "area": 0}
    shapes = ({**polygon, "category_id": 1}, other, {**crowd, "category_id": 18}, packed_shape)
    return [{"id": index, "image_id": number, **shape} for index, shape in enumerate(shapes[: 2 + number % 3])]


def labelme_files(draw: Random) -> Files:
    files: dict[str, Any] = {"labels.txt": "__ignore__\n_background_\nroad\ncar"}
    mask = base64.b64encode(save(Image.fromarray(np.full((4, 5), 255, np.uint8)), "PNG")).decode()
    shapes = [
        {"label": "road", "points": [[0, 2], [5, 2], [5, 13], [0, 13]], "shape_type": "polygon"},
        {"label": "car", "points": [[2, 1], [3, 1]], "shape_type": "circle"},
        {"label": "car", "points": [[2, 1], [30, 10]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[5, 0]], "shape_type": "point"},
        {"label": "car", "points": [[5, 0], [9, 9]], "shape_type": "linestrip"},
        {"label": "road", "points": [[5, 5], [9, 8]], "shape_type": "mask", "mask": mask},
    ]
    for split, stem in (("train", "a"), ("val", "b")):
        content = {"version": "5.5.0", "imagePath": f"{stem}.jpg", "imageData": None, "shapes": draw.sample(shapes, 4)}
        files[f"{split}/{stem}.json"] = content | {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        files[f"{split}/{stem}.jpg"] = seed_images()["rgb.jpg"]
    return files


def huggingface_files(draw: Random) -> Files:
    files: dict[str, Any] = {"id2label.json": dict(enumerate(NAMES))}
    is_arrow = draw.random() < 0.3
    for split, rows in (("train", 3), ("validation", 2)):
        pairs = [pair(draw) for _ in range(rows)]
        columns: dict[str, Any] = {
            "image": [{"bytes": image, "path": f"{row}.png"} for row, (image, _) in enumerate(pairs)],
            "label": [{"bytes": mask, "path": None} for _, mask in pairs],
            "scene": [f"scene {row}" for row in range(rows)],
            "number": list(range(rows)),
        }
        if draw.random() < 0.2:
            columns["image"][0] = {"bytes": None, "path": "beside.png"}
        name = f"{split}/data-00000-of-00001.arrow" if is_arrow else f"data/{split}-00000-of-00001.parquet"
        files[name] = pa.table(columns)
        files[f"{name.split('/', maxsplit=1)[0]}/beside.png"] = pairs[0][0]
    return {
        key: value if key != "id2label.json" else {str(index): name for index, name in value.items()}
        for key, value in files.items()
    }


def read_image_bytes(draw: Random, source: Path, _target: Path) -> None:
    """Decodes the bytes of an image with every decoder of stored and source images."""
    data = (source / "image.png").read_bytes()
    errors = []
    decoders: tuple[Callable[[], object], ...] = (
        lambda: decode_image(data, draw.choice((1, 2, 4, 8))),
        lambda: decode_mask(data),
        lambda: decode_source_mask(data, "image.png", MAX_PIXELS),
        lambda: decode_rgb(data, "image.png", MAX_PIXELS),
        lambda: decode_image(normalize_image(data, "image.png", MAX_PIXELS).encoded),
    )
    for decode in decoders:
        try:
            decode()
        except UserError as error:
            errors.append(error)
    if errors:
        raise draw.choice(errors)


def mutate_stored(draw: Random, _data: bytes, _outside: Path) -> bytes:
    return hostile_image(draw, {**seed_images(), **seed_masks()})


def read_lists(_draw: Random, source: Path, _target: Path) -> None:
    Classes.from_names(read_class_names(source / "classes.txt"))
    read_class_names(source / "classes.json")
    read_class_map(source / "map.yaml")
    add_columns((), source / "columns.csv")


def list_files(_draw: Random) -> Files:
    rows = "id,camera,city\ntrain/a,front,Bonn\ntrain/b,,Kiel"
    return {
        "classes.txt": "road\ncar # comment\nsky",
        "classes.json": list(NAMES),
        "map.yaml": "van: car\nsky: null\n'*': other",
        "columns.csv": rows,
    }


SOURCE_FILES: dict[str, Callable[[Random], Files]] = {
    "folder": folder_files,
    "palette": palette_files,
    "camvid": camvid_files,
    "cityscapes": cityscapes_files,
    "ade20k": ade20k_files,
    "voc": voc_files,
    **{f"coco-{kind}": coco_files(kind) for kind in ("panoptic", "stuff", "instances")},
    "labelme": labelme_files,
    "huggingface": huggingface_files,
}
READERS = {
    "image": Reader(
        lambda _: {"image.png": b""},
        read_image_bytes,
        12,
        40,
        names_source=False,
        has_tree=False,
        mutations={".png": mutate_stored},
    ),
    "lists": Reader(list_files, read_lists, 10, has_tree=False),
    **{name: Reader(files, read_source(name), 1 if name == "ade20k" else 3) for name, files in SOURCE_FILES.items()},
}
