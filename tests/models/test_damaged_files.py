"""Damaged files of a checkpoint and of weights are refused on one line that names the file."""

import os
import shutil

import pytest
import torch

from segray.core.errors import CheckpointError
from segray.models import checkpoint
from segray.models.weights.files import read_tensors

READERS = {
    "meta.json": checkpoint.load_meta,
    "config.json": checkpoint.load_config,
    "classes.json": checkpoint.load_classes,
    "state.pt": checkpoint.load_state,
    "model.safetensors": checkpoint.load_weights,
}


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[" * 100_000, b'{"names": [1], "files": 3, "data": {"crop": "x"}}']
)
@pytest.mark.parametrize("name", READERS)
def test_damaged_content_is_described_on_one_line(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        READERS[name](copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_not_read(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(CheckpointError, match=str(copy)):
        READERS[name](copy)


def test_keys_that_are_no_text_are_no_tensors(tmp_path):
    torch.save({None: torch.ones(1), 3: torch.ones(1), "a": torch.ones(2)}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["a"]
