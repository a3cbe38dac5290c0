"""The manifest vouches for its shards: what vanished, shrank or was edited is named before a run starts."""

import os
import shutil

import pytest

from segray.core.errors import DataError
from segray.data.manifest import MANIFEST, read_manifest


@pytest.fixture
def copy(streets, tmp_path):
    return shutil.copytree(streets, tmp_path / "copy")


def read_error(root):
    with pytest.raises(DataError) as raised:
        read_manifest(str(root))
    return str(raised.value)


def test_a_missing_shard_is_an_error(copy):
    (copy / "train" / "part-00001.parquet").unlink()
    assert "train/part-00001.parquet is missing" in read_error(copy)


def test_a_truncated_shard_is_an_error(copy):
    shard = copy / "val" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "val/part-00000.parquet is damaged" in read_error(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 7', "has format 7; expected 1"),
        ('"rows": 41', '"rows": 40', "does not match its digest"),
        ('"road"', '"raod"', "does not match its digest"),
        ("{", "[", "is damaged"),
    ],
)
def test_an_edited_manifest_is_an_error(copy, old, new, message):
    file = copy / MANIFEST
    text = file.read_text()
    if old == '"rows": 41':
        rows = f'"rows": {read_manifest(str(copy)).split("train").shards[0].rows}'
        old, new = rows, '"rows": 1'
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert message in read_error(copy)


def test_a_folder_without_a_dataset_is_an_error_with_a_command(tmp_path):
    assert "prepare.py" in read_error(tmp_path / "nowhere")


def test_an_unknown_split_is_an_error_that_lists_the_splits(copy):
    with pytest.raises(DataError, match="no split 'validation'; it has train, val, test"):
        read_manifest(str(copy)).split("validation")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    assert "dataset.json is not a regular file" in read_error(tmp_path)
