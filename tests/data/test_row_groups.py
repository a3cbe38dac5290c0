"""Small parquet files that expand to any size are refused by every reader; ordinary compression is accepted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.errors import DataError
from segray.data import row_groups
from segray.data.manifest import COLUMNS, Shard, Split
from segray.data.reader import SplitReader
from segray.data.row_groups import read_row_groups
from segray.data.sources.files import SourceFile
from segray.data.sources.huggingface_tables import read_cells
from segray.data.validate.shard import ShardTask, inspect_shard
from segray.inference.batch.sources import open_inputs

VALUE, ROWS = bytes(2**20), 32
OPTIONS = {
    "dictionary": {"compression": "zstd"},
    "compression": {"compression": "zstd", "use_dictionary": False},
    "prefixes": {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
}


def write(path, table, **options):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, **options)
    assert path.stat().st_size < 2**21
    return path


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(row_groups, "MAX_BYTES", 2**24)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_small_file_that_expands_is_refused_early(tmp_path, limit, kind):
    path = write(tmp_path / "a.parquet", pa.table({"image": [VALUE] * ROWS, "x": range(ROWS)}), **OPTIONS[kind])
    pool = pa.default_memory_pool()
    allocated = pool.bytes_allocated()
    with pq.ParquetFile(path) as file:
        with pytest.raises(DataError, match=r"^a has row groups that take more than 16777216 bytes in memory"):
            read_row_groups(file, [0], ["image"], "a")
        assert read_row_groups(file, [0], ["x"], "a")["x"].to_pylist() == list(range(ROWS))
    assert pool.bytes_allocated() - allocated < 2**22


def test_repeated_numbers_are_refused(tmp_path, limit):
    path = write(tmp_path / "a.parquet", pa.table({"x": pa.repeat(7, 2**22)}), row_group_size=2**22)
    with pq.ParquetFile(path) as file, pytest.raises(DataError, match="a has row groups"):
        read_row_groups(file, [0], None, "a")


@pytest.mark.parametrize("options", [*OPTIONS.values(), {}, {"compression": "snappy", "data_page_version": "2.0"}])
def test_the_rows_equal_those_of_pyarrow(tmp_path, options):
    table = pa.table({"image": [bytes([row % 5]) * 999 for row in range(3000)], "x": [None, 1, 2] * 1000})
    path = write(tmp_path / "a.parquet", table, row_group_size=1100, **options)
    with pq.ParquetFile(path) as file:
        assert read_row_groups(file, [0, 2], ["image"], "a").equals(file.read_row_groups([0, 2], columns=["image"]))
        assert read_row_groups(file, [1], None, "a").equals(file.read_row_groups([1]))
        assert read_row_groups(file, [], ["x"], "a").num_rows == 0


def test_every_reader_of_parquet_files_has_the_limit(tmp_path, limit):
    row = {"id": "t/1", "image": VALUE, "mask": b"y", "height": 1, "width": 1, "class_pixels": [1], "digest": "d"}
    path = write(tmp_path / "t/a.parquet", pa.Table.from_pylist([row] * ROWS, COLUMNS), compression="zstd")
    shard = Shard(path="t/a.parquet", rows=ROWS, bytes=path.stat().st_size, row_groups=(ROWS,), digest="d")
    split = Split(shards=(shard,), class_pixels=(1,), mean_height=1, mean_width=1)
    message = r"a\.parquet has row groups that take more than"
    with pytest.raises(DataError, match=message):
        SplitReader(str(tmp_path), split).read_columns(["image"])
    (error,) = inspect_shard(ShardTask(str(tmp_path), "t", shard, 1, 255)).errors
    assert "row groups that take more than" in error
    struct = [{"bytes": VALUE, "path": "x"}] * ROWS
    path = write(tmp_path / "u/a.parquet", pa.table({"image": struct}), compression="zstd")
    with pytest.raises(DataError, match=message):
        read_cells(SourceFile.stat(path), 0, "image")
    with pytest.raises(DataError, match=message):
        list(open_inputs(str(path)).shards[0].chunks(frozenset()))
    names = pa.table({"image": [b"x"] * ROWS, "id": [VALUE.decode()] * ROWS})
    with pytest.raises(DataError, match=message):
        open_inputs(str(write(tmp_path / "v/a.parquet", names, compression="zstd")))
