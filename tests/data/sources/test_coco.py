"""COCO's three kinds of annotations, laid out as published."""

import json
import time
from functools import partial

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.sources import coco
from segray.data.sources.files import SourceFile
from segray.data.sources.formats import SOURCES

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 92, "name": "banner"}]
HEIGHT, WIDTH = 4, 6


@pytest.fixture
def root(tmp_path, write_image):
    root = tmp_path / "coco"
    for split, stem in (("train", "000000000009"), ("train", "000000000025"), ("val", "000000000139")):
        write_image(root / f"{split}2017" / f"{stem}.jpg")
    return root


@pytest.fixture
def annotate(root):
    """Writes the annotations of all images, made by a function of the image's id."""

    def write(kind, make, categories=CATEGORIES):
        (root / "annotations").mkdir(exist_ok=True)
        for split, numbers in (("train", (9, 25)), ("val", (139,))):
            sizes = {"height": HEIGHT, "width": WIDTH}
            images = [{"id": number, "file_name": f"{number:012d}.jpg", **sizes} for number in numbers]
            annotations = [one for number in numbers for one in make(number, split)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))

    return write


IDS = ("train/000000000009", "train/000000000025", "val/000000000139")


def test_panoptic_segments_become_their_categories(root, annotate, write_mask, convert):
    segments = np.array([[0, 7, 300, 300, 70_000, 7]] * HEIGHT)
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1)
    segments = [{"id": 7, "category_id": 92}, {"id": 300, "category_id": 1}, {"id": 70_000, "category_id": 18}]

    def make(number, split):
        name = f"{number:012d}.png"
        write_mask(root / "annotations" / f"panoptic_{split}2017" / name, colours)
        yield {"image_id": number, "file_name": name, "segments_info": segments}

    annotate("panoptic", make)
    names, rows = convert(SOURCES["coco-panoptic"](str(root)))
    assert names == ("person", "dog", "banner")
    assert rows == dict.fromkeys(IDS, [[255, 2, 0, 0, 1, 2]] * HEIGHT)
    write_mask(root / "annotations/panoptic_val2017/000000000139.png", colours + np.array([1, 0, 0]))
    with pytest.raises(DataError, match="000000000139.png contains the segment 1, which its JSON file does not list"):
        SOURCES["coco-panoptic"](str(root)).samples[-1].read_mask()


def rectangle(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def test_smaller_instances_are_drawn_over_larger_ones_and_crowds_are_ignored(root, annotate, convert):
    def make(number, _split):
        large = {"segmentation": [rectangle(1, 0, 6, 4)], "area": 20, "category_id": 1, "iscrowd": 0}
        small = {"segmentation": [rectangle(2, 1, 3, 3)], "area": 2, "category_id": 18, "iscrowd": 0}
        # Runs down the columns, outside first: the last row of the last two columns.
        crowd = {"segmentation": {"counts": [19, 1, 3, 1], "size": [HEIGHT, WIDTH]}, "area": 2, "category_id": 1}
        for one in (small, crowd | {"iscrowd": 1}, large):
            yield one | {"image_id": number}

    annotate("instances", make)
    names, rows = convert(SOURCES["coco-instances"](str(root)))
    assert names == ("background", "person", "dog", "banner")
    expected = [[0, 1, 1, 1, 1, 1], [0, 1, 2, 1, 1, 1], [0, 1, 2, 1, 1, 1], [0, 1, 1, 1, 255, 255]]
    assert rows == dict.fromkeys(IDS, expected)


def test_category_ids_may_be_0_or_above_255(root, annotate, convert):
    categories = [{"id": 0, "name": "person"}, {"id": 1000, "name": "dog"}]
    shapes = [(rectangle(0, 0, 3, 4), 0), (rectangle(3, 0, 5, 4), 1000)]
    annotate(
        "instances",
        lambda number, _: [{"segmentation": [one], "category_id": key, "image_id": number} for one, key in shapes],
        categories,
    )
    names, rows = convert(SOURCES["coco-instances"](str(root)))
    assert names == ("background", "person", "dog")
    assert rows == dict.fromkeys(IDS, [[1, 1, 1, 2, 2, 0]] * HEIGHT)
    annotate("instances", lambda *_: [], [{"id": 65534, "name": "person"}])
    with pytest.raises(DataError, match="has the category id 65534; expected 0 to 65533"):
        SOURCES["coco-instances"](str(root))


def test_equal_image_names_in_different_folders_have_different_ids(root, annotate, write_image):
    annotate("instances", lambda *_: [])
    file = root / "annotations/instances_val2017.json"
    sizes = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": number, "file_name": f"{number}/a.jpg", **sizes} for number in (1, 2)]
    for image in images:
        write_image(root / "val2017" / image["file_name"])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": images}))
    assert [sample.id for sample in SOURCES["coco-instances"](str(root)).samples[-2:]] == ["val/1/a", "val/2/a"]
    write_image(root.parent / "elsewhere.jpg")
    images[0]["file_name"] = "../../elsewhere.jpg"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": images}))
    (line,) = SOURCES["coco-instances"](str(root)).problems
    assert "elsewhere.jpg: outside the source (" in line


def test_stuff_masks_are_compressed_runs_and_other_pixels_are_ignored(root, annotate, convert):
    from pycocotools import mask

    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[1:, 2:] = 1
    runs = mask.encode(np.asfortranarray(inside))
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    other = {"counts": [0, 4, 20], "size": [HEIGHT, WIDTH]}

    def make(number, _split):
        yield {"image_id": number, "segmentation": runs, "area": 12, "category_id": 92, "iscrowd": 0}
        yield {"image_id": number, "segmentation": other, "area": 4, "category_id": 18, "iscrowd": 0}

    annotate("stuff", make)
    names, rows = convert(SOURCES["coco-stuff"](str(root)))
    assert names == ("person", "dog", "banner")
    expected = [[1, 255, 255, 255, 255, 255], *[[1, 255, 2, 2, 2, 2]] * 3]
    assert rows == dict.fromkeys(IDS, expected)


def read_mask(size, *segmentations):
    """The mask of an image with these segmentations, of the categories 1, 2 ..."""
    annotations = [{"segmentation": value, "category_id": index} for index, value in enumerate(segmentations, 1)]
    packed = coco._pack(annotations, ("segmentation", "category_id"))
    return coco.AnnotationMask(SourceFile("a.json", 1, 1), "a.json, image 9", size, packed, True)()


def test_masks_equal_those_of_pycocotools():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(rng.integers(1, 40, 2).tolist())
        inside = np.asfortranarray(rng.random(size) < rng.random(), np.uint8)
        stated = {"size": list(size)}
        lengths = np.diff(np.flatnonzero(np.diff(inside.ravel("F"), prepend=0, append=2)), prepend=0).tolist()
        polygons = [
            ((rng.random(2 * rng.integers(3, 9)) * 1.5 - 0.2) * max(size)).tolist() for _ in range(rng.integers(1, 4))
        ]
        expected = np.full(size, coco.EMPTY, np.uint16)
        expected[inside == 1] = 1
        expected[mask.decode(mask.merge(mask.frPyObjects(polygons, *size))) == 1] = 2
        for counts in (mask.encode(inside)["counts"].decode(), lengths):
            assert np.array_equal(read_mask(size, {"counts": counts} | stated, polygons), expected)


def test_the_time_for_an_endless_run_length_is_linear():
    started_s = time.process_time()
    with pytest.raises(DataError, match="run length of more than 7 units"):
        read_mask((HEIGHT, WIDTH), {"counts": "o" * 160_000, **SIZES})
    assert time.process_time() - started_s < 0.3


def test_the_memory_for_an_outline_is_limited():
    zigzag = np.stack([np.linspace(0, 2000, 400), np.arange(400) % 2 * 2000], axis=1).ravel().tolist()
    with pytest.raises(DataError, match="outline of 800000 pixels; expected at most 256000"):
        read_mask((2000, 2000), [zigzag])


@pytest.mark.parametrize("count", [1_000, 7_000])
def test_the_work_for_repeated_shapes_is_limited(count):
    size = (480, 640)
    read = partial(read_mask, size, *[{"counts": [0, 480 * 640], "size": list(size)}] * count)
    started_s = time.process_time()
    if count == 1_000:  # far more than in any image of COCO
        assert set(read().ravel().tolist()) == {count}
    else:
        with pytest.raises(DataError, match="shapes that fill more than 2147483648 pixels in total"):
            read()
    assert time.process_time() - started_s < 6


def test_the_size_of_the_json_does_not_limit_the_rows_of_a_shard(root, annotate):
    annotate("instances", lambda *_: [], [*CATEGORIES, {"id": 99, "name": "x" * 3_000_000}])
    assert all(sample.size_bytes < 10_000 for sample in SOURCES["coco-instances"](str(root)).samples)


def test_duplicate_category_names_are_errors_and_split_names_have_no_year(root, annotate):
    annotate("instances", lambda *_: [])
    for path in (root, root / "annotations"):
        for one in path.glob("*train2017*"):
            one.rename(one.with_name(one.name.replace("2017", "2014")))
    assert {sample.split for sample in SOURCES["coco-instances"](str(root)).samples} == {"train", "val"}
    annotate("stuff", lambda *_: [], [{"id": 1, "name": "sky"}, {"id": 2, "name": "sky"}])
    with pytest.raises(DataError, match="has duplicate category names \\(sky\\)"):
        SOURCES["coco-stuff"](str(root))


def test_annotations_of_unlisted_images_are_problems(root, annotate):
    annotate("instances", lambda number, _: [{"image_id": str(number), "segmentation": [], "category_id": 1}] * 2)
    first, second = SOURCES["coco-instances"](str(root)).problems
    assert first.endswith("instances_train2017.json: 4 annotations have an image_id that is not listed, such as '25'")
    assert "2 annotations" in second


def test_an_image_without_annotations_is_background_or_ignored(root, annotate):
    annotate("instances", lambda *_: [])
    annotate("stuff", lambda *_: [])
    for kind, expected in (("instances", 0), ("stuff", None)):
        result = SOURCES[f"coco-{kind}"](str(root))
        (value,) = np.unique(result.samples[0].read_mask()).tolist()
        assert result.lookup[value] == expected


FAR = [1.0, 1.0, 1e8, 1.0, 1.0, 3.0]
NAN = [1.0, 1.0, float("nan"), 1.0, 1.0, 3.0]
SIZES = {"size": [HEIGHT, WIDTH]}


@pytest.mark.parametrize(
    "broken",
    [
        {"segmentation": [[1.0, 2.0]]},
        {"segmentation": [FAR]},
        {"segmentation": [NAN]},
        {"segmentation": {"counts": "\x00~"} | SIZES},
        {"segmentation": {"counts": [3]} | SIZES},
        {"segmentation": {"counts": [30, -6]} | SIZES},
        {"segmentation": {"counts": [23.5, 0.5]} | SIZES},
        {"segmentation": {"counts": [24], "size": [4.0, 6.0]}},
        {"segmentation": []},
        {"segmentation": {"counts": "1"} | SIZES},
        {"segmentation": {"counts": "h"} | SIZES},
        {"segmentation": SIZES},
        {"segmentation": None},
        {"category_id": None},
        {"category_id": 70000},
        {"area": "large"},
    ],
)
def test_an_invalid_segmentation_is_an_error(root, annotate, broken):
    whole = {"segmentation": {"counts": [24]} | SIZES, "category_id": 92}
    annotate("stuff", lambda number, _: [whole | {"image_id": number} | broken])
    with pytest.raises(DataError, match="stuff_train2017.json, image 9 has an invalid segmentation"):
        SOURCES["coco-stuff"](str(root)).samples[0].read_mask()


def test_a_segmentation_of_the_wrong_size_is_an_error(root, annotate):
    runs = {"counts": [0, 4], "size": [2, 2]}
    annotate("stuff", lambda number, _: [{"image_id": number, "segmentation": runs, "category_id": 92}])
    with pytest.raises(DataError, match=r"has an invalid segmentation \(ValueError\('size 2x2; expected 6x4'\)\)"):
        SOURCES["coco-stuff"](str(root)).samples[0].read_mask()


def test_a_file_without_coco_annotations_is_an_error(root, annotate):
    annotate("stuff", lambda *_: [])
    whole = json.loads((root / "annotations/stuff_val2017.json").read_text())
    broken = [[], {}, {**whole, "images": [{"id": 1}]}, {**whole, "annotations": [{}]}, {**whole, "categories": [5]}]
    for content in ("{", *map(json.dumps, broken)):
        (root / "annotations/stuff_val2017.json").write_text(content)
        with pytest.raises(DataError, match="stuff_val2017.json is not a COCO annotation file"):
            SOURCES["coco-stuff"](str(root))
    with pytest.raises(DataError, match=r"contains no panoptic_\*.json"):
        SOURCES["coco-panoptic"](str(root))


@pytest.mark.parametrize("size", [(10**6, 10**6), (0, 6), (-1, -6)])
def test_an_invalid_image_size_is_an_error_before_rasterization(root, annotate, size):
    annotate("instances", lambda *_: [])
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0].update(height=size[0], width=size[1])
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"image 9 has the size {size[1]}x{size[0]}; expected 1 to"):
        SOURCES["coco-instances"](str(root)).samples[0].read_mask()
