"""LabelMe's JSON beside its images."""

import io
import json
import time
from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segray.core.errors import DataError
from segray.data import source_masks
from segray.data.sources.files import SourceFile
from segray.data.sources.formats import SOURCES
from segray.data.sources.labelme import PolygonMask


def shape(label, points, kind="polygon"):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


@pytest.fixture
def annotate(tmp_path, write_image):
    """Writes an image of 6x4 pixels and its JSON."""

    def write(name, *shapes):
        file = tmp_path / f"{name}.json"
        write_image(file.with_suffix(".jpg"))
        content = {"version": "5.5.0", "imagePath": f"{file.stem}.jpg", "imageData": None, "shapes": shapes}
        file.write_text(json.dumps(content | {"imageHeight": 4, "imageWidth": 6}))

    return write


def test_shapes_of_every_kind_are_drawn_in_order(tmp_path, annotate, convert):
    annotate("train/a", shape("road", [[0, 2], [5, 2], [5, 3], [0, 3]]), shape("car", [[4, 3], [1, 2]], "rectangle"))
    annotate("train/b", shape("car", [[2, 1], [3, 1]], "circle"), shape("__ignore__", [[5, 0]], "point"))
    annotate("val/c", shape("road", [[0, 0], [5, 0]], "line"), shape("car", [[0, 3], [2, 3], [2, 1]], "linestrip"))
    names, rows = convert(SOURCES["labelme"](str(tmp_path)))
    assert names == ("_background_", "car", "road")
    assert rows["train/a"] == [[0] * 6, [0] * 6, [2, 1, 1, 1, 1, 2], [2, 1, 1, 1, 1, 2]]
    assert rows["train/b"] == [[0, 0, 1, 0, 0, 255], [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6]
    assert rows["val/c"] == [[2] * 6, [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_an_embedded_mask_is_placed_between_two_corners(tmp_path, annotate, convert):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(buffer, "PNG")
    mask = shape("car", [[3, 1], [4, 2]], "mask") | {"mask": b64encode(buffer.getvalue()).decode()}
    annotate("train/a", shape("road", [[0, 0], [5, 3]], "rectangle"), mask)
    annotate("train/b", mask | {"mask": "no base64"})
    annotate("train/c", mask | {"mask": None})
    result = SOURCES["labelme"](str(tmp_path))
    for sample, message in zip(
        result.samples[1:], ("b.json has a mask that is not valid base64", r"c.json \(embedded mask\)"), strict=True
    ):
        with pytest.raises(DataError, match=message):
            sample.read_mask()
    _, rows = convert(replace(result, samples=result.samples[:1]))
    assert rows["train/a"] == [[2] * 6, [2, 2, 2, 1, 2, 2], [2, 2, 2, 1, 1, 2], [2] * 6]


def test_an_image_may_be_elsewhere_in_the_source_but_not_outside(tmp_path, annotate, write_image):
    annotate("set/train/a")
    file = tmp_path / "set/train/a.json"
    write_image(tmp_path / "set/images/a.jpg")
    file.write_text(file.read_text().replace('"a.jpg"', '"..\\\\images\\\\a.jpg"'))
    (sample,) = SOURCES["labelme"](str(tmp_path / "set")).samples
    assert sample.read_image() == (tmp_path / "set/images/a.jpg").read_bytes()
    write_image(tmp_path / "a.jpg")
    file.write_text(file.read_text().replace("images", ".."))
    (line,) = SOURCES["labelme"](str(tmp_path / "set")).problems
    assert "a.jpg: outside the source" in line


def test_labels_txt_defines_the_order_and_other_labels_are_errors(tmp_path, annotate):
    annotate("train/a", shape("road", [[0, 0], [5, 0], [5, 3]]), shape("tree", [[0, 0], [1, 1], [0, 1]]))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    result = SOURCES["labelme"](str(tmp_path))
    assert result.classes.names == ("_background_", "road", "car")
    with pytest.raises(
        DataError, match=r"train/a.json has the label 'tree', which is not a class; add it to labels.txt"
    ):
        result.samples[0].read_mask()


def test_one_folder_without_splits_is_not_split(tmp_path, annotate):
    annotate("a", shape("road", [[0, 0], [5, 0], [5, 3]]))
    assert [sample.id for sample in SOURCES["labelme"](str(tmp_path)).samples] == ["all/a"]


def test_files_outside_split_folders_are_problems(tmp_path, annotate):
    for name in ("a", "train/b", "train/._c"):
        annotate(name)
    result = SOURCES["labelme"](str(tmp_path))
    assert [sample.id for sample in result.samples] == ["train/b"]
    (line,) = result.problems
    assert "a.json: not in the folder of a split" in line


def test_invalid_files_and_missing_images_are_problems(tmp_path, annotate):
    for name in ("train/a", "train/b", "train/c"):
        annotate(name)
    (tmp_path / "train/a.json").write_text("{")
    (tmp_path / "train/b.json").write_text('{"shapes": []}')
    (tmp_path / "train/c.jpg").unlink()
    annotate("train/d", shape(["a list"], [[0, 0]] * 3), shape(5, [[0, 0]] * 3))
    (tmp_path / "train/e.json").write_text('{"imageHeight": Infinity, "imageWidth": 1, "shapes": [], "imagePath": ""}')
    (tmp_path / "train/f.json").write_text(
        '{"imageHeight": 1, "imageWidth": 1, "shapes": [], "imagePath": "' + "x" * 5000 + '"}'
    )
    (tmp_path / "train/g.json").write_text("[" * 100_000)
    result = SOURCES["labelme"](str(tmp_path))
    assert [sample.id for sample in result.samples] == ["train/d"]
    assert result.classes.names == ("_background_", "5", "['a list']")
    for name, line in zip(
        (
            "a.json: not a L",
            "b.json: not a L",
            "e.json: not a L",
            "g.json: not a L",
            "c.jpg: miss",
            "cannot be accessed",
        ),
        result.problems,
        strict=True,
    ):
        assert name in line


@pytest.mark.parametrize(
    "broken",
    [
        shape("road", [[0, 0], [1, 1]]),
        shape("road", [[0, 0]] * 3, "star"),
        shape("road", [[0], [1], [2]]),
        shape("road", [[0, 0], [1e9, 1]], "rectangle"),
        shape("road", [[0, 0], [1, float("nan")]], "circle"),
    ],
)
def test_an_invalid_shape_is_an_error(tmp_path, annotate, broken):
    annotate("train/a", broken)
    with pytest.raises(DataError, match=r"train/a.json has a "):
        SOURCES["labelme"](str(tmp_path)).samples[0].read_mask()


def test_an_invalid_image_size_is_an_error(tmp_path, annotate):
    annotate("train/a")
    file = tmp_path / "train/a.json"
    file.write_text(file.read_text().replace('"imageWidth": 6', '"imageWidth": 6000000000'))
    with pytest.raises(DataError, match="train/a.json has the size 6000000000x4"):
        SOURCES["labelme"](str(tmp_path)).samples[0].read_mask()


@pytest.mark.parametrize("radius", [2**16, 2**16 + 1, 999_999])
def test_a_circle_of_any_size_is_drawn_at_once(radius, tmp_path, annotate):
    annotate("a", shape("car", [[2, radius + 1], [2, 1]], "circle"))
    started_s = time.process_time()
    ids = PolygonMask(SourceFile.stat(tmp_path / "a.json"), ("_background_", "car"))()
    assert ids[0].tolist() == [0] * 6
    assert ids[1, 2] == 1
    assert ids[2:].tolist() == [[1] * 6] * 2
    assert time.process_time() - started_s < 5


ZIGZAG = [[column / 2, column % 2 * 999] for column in range(2_000)]
FAR = [[index % 7 * 100_000, index % 5 * 200_000] for index in range(20)]


@pytest.mark.parametrize(
    ("points", "kind", "count"),
    [
        (ZIGZAG, "polygon", 50),
        (FAR, "linestrip", 200),
        ([[0, 0], [999, 999]], "rectangle", 200),
        ([[500, 500], [500, 100_000]], "circle", 200),
    ],
)
def test_the_work_for_the_shapes_of_a_file_is_limited(points, kind, count, tmp_path, annotate, monkeypatch):
    monkeypatch.setattr(source_masks, "MAX_RASTER_WORK", 2**27)
    annotate("a", *[shape("car", points, kind)] * count)
    file = tmp_path / "a.json"
    content = json.loads(file.read_text()) | {"imageHeight": 1000, "imageWidth": 1000}
    file.write_text(json.dumps(content))
    reader = PolygonMask(SourceFile.stat(file), ("_background_", "car"))
    started_s = time.process_time()
    with pytest.raises(DataError, match=r"a\.json has shapes that fill more than 134217728 pixels in total"):
        reader()
    assert time.process_time() - started_s < 2


def test_the_work_for_embedded_masks_is_limited(tmp_path, annotate, monkeypatch):
    monkeypatch.setattr(source_masks, "MAX_RASTER_WORK", 2**24)
    buffer = io.BytesIO()
    Image.new("1", (1_000, 1_000)).save(buffer, "PNG")
    mask = shape("car", [[0, 0], [1, 1]], "mask") | {"mask": b64encode(buffer.getvalue()).decode()}
    annotate("a", *[mask] * 20)
    with pytest.raises(DataError, match=r"a\.json has shapes that fill more than"):
        PolygonMask(SourceFile.stat(tmp_path / "a.json"), ("_background_", "car"))()


def test_a_thousand_shapes_are_drawn(tmp_path, annotate):
    annotate("a", *[shape("car", [[0, 0], [5, 0], [5, 3], [0, 3]])] * 1_000)
    assert PolygonMask(SourceFile.stat(tmp_path / "a.json"), ("_background_", "car"))().tolist() == [[1] * 6] * 4
