"""Damaged tables, pipes and job states are refused with a message that names them."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.errors import DataError
from segray.inference.batch.progress import JobProgress
from segray.inference.batch.sources import open_inputs


def test_a_table_with_two_columns_of_a_name_is_refused(tmp_path):
    column = pa.array([b"x"])
    pq.write_table(pa.Table.from_arrays([column, column], ["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has several columns of one name"):
        open_inputs(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("names", [[b"x"], ["y" * 300], [None]])
def test_names_that_cannot_be_file_names_are_refused_briefly(tmp_path, names):
    pq.write_table(pa.table({"id": names, "image": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet") as caught:
        open_inputs(str(tmp_path / "a.parquet"))
    assert len(str(caught.value)) < 1000


def test_a_pipe_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a regular file"):
        open_inputs(str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="contains no images"):
        open_inputs(str(tmp_path))


@pytest.mark.parametrize("name", ["job.json", "done/000000-0000.json"])
@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"images": -1, "problems": []}'])
def test_a_damaged_state_of_a_job_is_named(tmp_path, name, text):
    path = tmp_path / ".unfinished" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DataError), JobProgress(str(tmp_path)).lock({"a": 1}):
        pass
