"""Shards whose columns are not those of a dataset are refused with a message that names the shard."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.errors import DataError
from segray.data.manifest import COLUMNS, Shard, Split
from segray.data.reader import SplitReader

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
