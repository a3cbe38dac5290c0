"""Shards whose columns are not those of a dataset are refused with a message that names the shard."""

from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.errors import DataError
from segray.data.manifest import COLUMNS, Shard, Split
from segray.data.reader import SplitReader
from segray.evaluation.slices import slice_labels

ROW = {"id": "a/1", "image": b"x", "mask": b"y", "height": 1, "width": 1, "class_pixels": [1, 0], "digest": "d"}


def reader(folder, table):
    (folder / "train").mkdir()
    path = folder / "train" / "part.parquet"
    pq.write_table(table, path)
    shard = Shard(path="train/part.parquet", rows=1, bytes=path.stat().st_size, row_groups=(1,), digest="d")
    return SplitReader(str(folder), Split(shards=(shard,), class_pixels=(1, 0), mean_height=1, mean_width=1))


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("class_pixels", [[1]], "has 1 values of class_pixels; expected 2"),
        ("class_pixels", [None], "has null in the column class_pixels"),
        ("class_pixels", ["x"], "has string in the column class_pixels"),
        (None, None, "has 0 columns class_pixels"),
    ],
)
def test_class_pixels_of_another_form_are_refused(tmp_path, column, values, found):
    table = pa.Table.from_pylist([ROW], COLUMNS).drop_columns("class_pixels")
    if column is not None:
        table = table.append_column(column, pa.array(values))
    with pytest.raises(DataError, match=rf"part\.parquet {found}"):
        list(reader(tmp_path, table).class_pixels())


def test_a_repeated_column_is_refused(tmp_path):
    table = pa.Table.from_pylist([ROW], COLUMNS)
    table = table.append_column("height", table["height"])
    with pytest.raises(DataError, match=r"part\.parquet has 2 columns height"):
        reader(tmp_path, table).min_sizes()


@pytest.mark.parametrize("column", ["id", "digest", "city"])
def test_text_that_is_not_utf8_is_an_error_that_names_the_shard(tmp_path, column):
    table = pa.Table.from_pylist([ROW], COLUMNS).append_column("city", pa.array(["a"]))
    text = pa.array([b"\xff\xfe"]).view(pa.string())
    source = reader(tmp_path, table.set_column(table.schema.get_field_index(column), column, text))
    message = rf"shard .*part\.parquet has text that is not UTF-8 in the column {column}"
    with pytest.raises(DataError, match=message):
        source.read_columns([column])
    read = partial(source.read, [0]) if column == "digest" else partial(slice_labels, source, {"city": None})
    with pytest.raises(DataError, match=message):
        read()


def test_a_damaged_schema_is_an_error_that_names_the_shard(tmp_path):
    source = reader(tmp_path, pa.Table.from_pylist([ROW], COLUMNS))
    (tmp_path / "train/part.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"shard .*part\.parquet cannot be read"):
        source.require_label_columns(["id"])
