"""Files by which a source describes itself: regular files inside the source, with valid class names."""

import json
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from segray.core.errors import DataError
from segray.data.sources.formats import SOURCES

PANOPTIC = "annotations/panoptic_train2017.json"
DESCRIPTIONS = {
    "folder": ("classes.txt", "images/train/a.png", "masks/train/a.png"),
    "palette": ("palette.txt", "images/train/a.png", "masks/train/a.png"),
    "voc": ("ImageSets/Segmentation/train.txt", "JPEGImages/a.jpg", "SegmentationClass/a.png"),
    "labelme": ("train/a.json", "train/a.jpg"),
    "camvid": ("train.txt", "train/a.png", "trainannot/a.png"),
    "ade20k": ("objectInfo150.txt", "images/training/a.jpg", "annotations/training/a.png"),
    "coco-panoptic": (PANOPTIC, "train2017/a.jpg"),
    "coco-stuff": (PANOPTIC.replace("panoptic", "stuff"), "train2017/a.jpg"),
}


@pytest.fixture
def lay_out(tmp_path, write_image):
    """Writes the images of a format and returns the root and the path of the file that describes them."""

    def write(kind):
        root = tmp_path / "source"
        description, *images = DESCRIPTIONS[kind]
        for name in images:
            write_image(root / name)
        (root / description).parent.mkdir(parents=True, exist_ok=True)
        return root, root / description

    return write


def problem(kind, root):
    """The message with which a format refuses a source, in at most five seconds."""
    messages = []

    def read():
        try:
            messages.extend(SOURCES[kind](str(root)).problems)
        except DataError as error:
            messages.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "the source is read for ever"
    return "\n".join(messages)


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_description_outside_the_source_is_not_read(lay_out, tmp_path, kind):
    root, description = lay_out(kind)
    (tmp_path / "secret").write_text("password")
    description.symlink_to(tmp_path / "secret")
    message = problem(kind, root)
    assert f"{description} is a link to {tmp_path / 'secret'}, outside the source" in message


@pytest.mark.parametrize("kind", [*DESCRIPTIONS, "huggingface"])
def test_a_description_that_is_a_pipe_or_a_device_is_not_read(lay_out, tmp_path, kind):
    if kind == "huggingface":
        root, description = tmp_path, tmp_path / "id2label.json"
        (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    else:
        root, description = lay_out(kind)
    os.mkfifo(description)
    assert f"{description} is not a regular file" in problem(kind, root)
    description.unlink()
    description.symlink_to("/dev/zero")
    assert f"{description} is not a regular file" in problem(kind, root)


@pytest.mark.parametrize("categories", [[], [{"id": 1, "name": " "}], [{"id": 1, "name": "\ud800"}]])
def test_invalid_category_names_name_the_source(lay_out, categories):
    root, description = lay_out("coco-stuff")
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
    description.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    assert f"{root} has invalid class names" in problem("coco-stuff", root)


def test_a_palette_of_ignored_colours_alone_is_refused(lay_out):
    root, description = lay_out("palette")
    description.write_text("0 0 0 void")
    assert f"{description} has invalid class names" in problem("palette", root)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"0": "a", "1": "a"}', '{"0": " "}'])
def test_invalid_labels_of_the_hub_are_named_on_one_line(tmp_path, text):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    (tmp_path / "id2label.json").write_text(text)
    message = problem("huggingface", tmp_path)
    assert f"{tmp_path / 'id2label.json'} cannot be used" in message
    assert "\n" not in message


def test_an_arrow_file_with_damaged_offsets_is_refused(tmp_path):
    """Arrow trusts the offsets of a file: reading such a cell ended the process with a segmentation fault."""
    cells = [{"bytes": b"x", "path": None}] * 3
    table = pa.table({"image": cells, "label": cells, "scene": ["aa", "bb", "cc"]})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    data = bytearray(buffer.getvalue().to_pybytes())
    offsets = np.array([0, 2, 4, 6], np.int32).tobytes()
    start = data.index(offsets)
    data[start : start + len(offsets)] = np.array([0, 2**31 - 8, 2**31 - 4, 2**31 - 1], np.int32).tobytes()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(data)
    message = problem("huggingface", tmp_path)
    assert "data-00000-of-00001.arrow cannot be read" in message


def test_a_table_with_two_columns_of_a_name_is_refused(tmp_path):
    cells = pa.array([{"bytes": b"x", "path": None}])
    table = pa.Table.from_arrays([cells, cells, pa.array(["a"]), pa.array(["b"])], ["image", "label", "scene", "scene"])
    pq.write_table(table, tmp_path / "train-0.parquet")
    assert f"{tmp_path / 'train-0.parquet'} has several columns named 'scene'" in problem("huggingface", tmp_path)


def test_a_line_break_in_a_name_stays_on_one_line(lay_out):
    root, _ = lay_out("palette")
    (root / "palette\n.txt").write_text("0 0 0 road")
    assert "\n" not in problem("palette", root)
