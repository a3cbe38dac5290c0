"""Tables of images and labels as the hub has them, and as `datasets` saves them."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.core.errors import DataError
from segray.data.sources import huggingface, huggingface_tables
from segray.data.sources.files import SourceFile
from segray.data.sources.formats import SOURCES
from segray.data.sources.huggingface_tables import locate_cell

ROWS = {"train": 5, "validation": 2}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def ids(split, row):
    return [[row % 3, 0, 1, 2, 255, len(split) % 3]] * 4


def table(split, rows, names=("image", "annotation")):
    columns = {
        names[0]: [{"bytes": png(np.full((4, 6, 3), row)), "path": f"{row}.png"} for row in range(rows)],
        names[1]: [{"bytes": png(ids(split, row)), "path": None} for row in range(rows)],
        "scene": [f"scene {row}" for row in range(rows)],
    }
    return pa.table(columns)


NAMES = {"0": "wall", "1": "floor", "2": "lamp"}
EXPECTED = {
    f"{'val' if split == 'validation' else split}/{row:07d}": ids(split, row)
    for split, rows in ROWS.items()
    for row in range(rows)
}


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, rows in ROWS.items():
        whole = table(split, rows)
        for part, start in enumerate(range(0, rows, 3)):
            file = tmp_path / "hub" / "data" / f"{split}-{part:05d}-of-00002.parquet"
            pq.write_table(whole.slice(start, 3), file, row_group_size=2)
    (tmp_path / "hub" / "id2label.json").write_text(json.dumps(NAMES))
    return tmp_path / "hub"


def test_parquet_as_on_the_hub(hub, convert):
    names, rows = convert(SOURCES["huggingface"](str(hub)))
    assert names == ("wall", "floor", "lamp")
    assert rows == EXPECTED


def test_other_columns_are_kept_as_text(hub):
    more = table("train", 3).append_column("day", pa.array([True, None, False])).append_column("size", [[1, 2, 3]])
    pq.write_table(more, hub / "data" / "test-00000.parquet", row_group_size=2)
    result = [dict(one.columns) for one in SOURCES["huggingface"](str(hub)).samples if one.split == "test"]
    days = ({"day": "true"}, {}, {"day": "false"})
    assert result == [{"scene": f"scene {row}", **day} for row, day in enumerate(days)]


def test_a_folder_saved_by_datasets(tmp_path, convert):
    for split, rows in ROWS.items():
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        saved = table(split, rows, ("pixel_values", "label"))
        with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", saved.schema) as writer:
            writer.write_table(saved, max_chunksize=2)
    names, rows = convert(SOURCES["huggingface"](str(tmp_path / "saved")))
    assert names == ("class_0", "class_1", "class_2")
    assert rows == EXPECTED


def test_missing_bytes_are_read_from_the_path(tmp_path):
    images = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}]
    labels = [{"bytes": png(ids("train", row)), "path": None} for row in range(3)]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train.parquet")
    (tmp_path / "a.png").write_bytes(b"pixels")
    result = SOURCES["huggingface"](str(tmp_path))
    assert [sample.read_image() for sample in result.samples] == [b"pixels"]
    assert "train/0000001: " in result.problems[0]
    assert "train.parquet, row 1, column image has no bytes, and its file 'b.png' cannot be read" in result.problems[0]
    assert "train.parquet, row 2, column image is empty" in result.problems[1]
    (tmp_path / "a.png").write_bytes(b"others")
    with pytest.raises(DataError, match="a.png has changed since the conversion started"):
        result.samples[0].read_image()
    assert SOURCES["huggingface"](str(tmp_path)).samples[0].version != result.samples[0].version
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("/etc/hostname")
    (line, *_) = SOURCES["huggingface"](str(tmp_path)).problems
    assert "row 0, column image has no bytes, and its path 'a.png' is outside the folder" in line


def test_several_configurations_are_an_error(hub):
    for name in ("scene_parsing", "instances"):
        (hub / name).mkdir()
    for path in sorted((hub / "data").iterdir()):
        path.rename(hub / "scene_parsing" / path.name)
    (hub / "data").rmdir()
    result = SOURCES["huggingface"](str(hub))
    assert {name: sum(one.split == name for one in result.samples) for name in ("train", "val")} == {
        "train": 5,
        "val": 2,
    }
    pq.write_table(table("train", 1), hub / "instances" / "train.parquet")
    with pytest.raises(
        DataError, match="contains several configurations \\(instances, scene_parsing\\); pass one of them"
    ):
        SOURCES["huggingface"](str(hub))


def test_ambiguous_splits_are_errors(hub):
    pq.write_table(table("val", 1), hub / "data" / "val.parquet")
    with pytest.raises(DataError, match="contains val and validation; expected one of them"):
        SOURCES["huggingface"](str(hub))
    for name, split in (("a", "train"), ("b", "test")):
        (hub / "two" / name).mkdir(parents=True)
        pq.write_table(table(split, 2), hub / "two" / name / f"{split}.parquet")
    with pytest.raises(DataError, match="several configurations \\(a, b\\)"):
        SOURCES["huggingface"](str(hub / "two"))
    (hub / "two" / "a").rename(hub / "two" / "train")
    (hub / "two" / "b").rename(hub / "two" / "test")
    assert {one.split for one in SOURCES["huggingface"](str(hub / "two")).samples} == {"train", "test"}


def test_listing_reads_no_images_if_statistics_show_no_nulls(hub, monkeypatch):
    read_cells = huggingface_tables.read_cells

    def read(file, group, column):
        assert column == "scene"
        return read_cells(file, group, column)

    monkeypatch.setattr(huggingface_tables, "read_cells", read)
    monkeypatch.setattr(huggingface, "read_cells", read)
    assert len(SOURCES["huggingface"](str(hub)).samples) == 7


def test_empty_bytes_are_errors_when_read_and_a_damaged_table_is_a_problem(hub):
    (hub / "data" / "train-00001-of-00002.parquet").write_bytes(b"no table")
    (hub / "data" / "._train.parquet").touch()
    cells = {"image": [{"bytes": b"", "path": "x.png"}], "label": [{"bytes": png(ids("train", 0)), "path": None}]}
    pq.write_table(pa.table(cells), hub / "data" / "test.parquet")
    result = SOURCES["huggingface"](str(hub))
    (line,) = result.problems
    assert "train-00001-of-00002.parquet cannot be read" in line
    with pytest.raises(DataError, match="test.parquet, row 0, column image is empty"):
        next(one for one in result.samples if one.split == "test").read_image()


def test_missing_image_columns_and_missing_tables_are_reported(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    (line,) = SOURCES["huggingface"](str(tmp_path)).problems
    assert "has the columns text; expected one of image, pixel_values" in line
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match="contains no table files"):
        SOURCES["huggingface"](str(tmp_path))


def test_a_file_that_changes_during_the_conversion_is_an_error(hub):
    sample = SOURCES["huggingface"](str(hub)).samples[0]
    pq.write_table(table("train", 3), hub / "data" / "train-00000-of-00002.parquet", row_group_size=2)
    with pytest.raises(DataError, match="train-00000-of-00002.parquet has changed since the conversion started"):
        sample.read_mask()


def test_a_pipe_is_refused_and_not_waited_for(hub):
    pipe = hub / "data" / "test-00000-of-00001.parquet"
    os.mkfifo(pipe)
    (problem,) = SOURCES["huggingface"](str(hub)).problems
    assert problem.startswith(f"{pipe} is not a regular file")


def test_class_names_behind_a_link_out_of_the_source_are_refused(hub, tmp_path):
    outside = tmp_path / "names.json"
    outside.write_text('{"0": "a"}')
    (hub / huggingface.NAMES).unlink(missing_ok=True)
    (hub / huggingface.NAMES).symlink_to(outside)
    with pytest.raises(DataError, match="outside the source; copy the file into the source"):
        SOURCES["huggingface"](str(hub))


def test_a_cell_that_names_a_pipe_is_an_error(tmp_path):
    table = pa.table({"image": [{"bytes": None, "path": "pipe"}]})
    pq.write_table(table, tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a regular file"):
        locate_cell(SourceFile.stat(tmp_path / "a.parquet"), 0, "image", "pipe")
