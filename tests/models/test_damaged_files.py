"""Damaged files of a checkpoint and of weights are refused on one line that names the file."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

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


LIMITED = """
import resource, sys, torch
from pathlib import Path
from segray.core.device_errors import is_out_of_memory
from segray.models import checkpoint
from segray.models.weights.files import read_tensors

folder = Path(sys.argv[1])
torch.ones(1).sum()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, used + 2**23))
for read, path in (
    (checkpoint.load_weights, folder),
    (checkpoint.load_state, folder),
    (read_tensors, folder / "model.safetensors"),
    (read_tensors, folder / "large.pth"),
):
    try:
        read(path)
        print("read")
    except Exception as error:
        print(type(error).__name__, is_out_of_memory(error), str(error).splitlines()[0])
"""


def test_exhausted_memory_is_not_a_damaged_file(copy):
    large = {"weight": torch.ones(2**24)}  # 64 MiB
    save_file(large, copy / "model.safetensors")
    for name in ("state.pt", "large.pth"):
        torch.save(large, copy / name)
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"checksums": {}}))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, copy], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert not line.startswith("CheckpointError"), line
        assert line.split()[1] == "True", line
