"""A folder that cannot be read is an error and not a folder without samples."""

import os
from pathlib import Path

import pyarrow.fs
import pytest

from segray.core.errors import DataError
from segray.data.sources import cityscapes, huggingface, labelme
from segray.data.sources.files import glob_files
from segray.inference.batch.images import list_files


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A source whose folder `locked` the operating system refuses to list, also to the superuser."""
    scandir = os.scandir

    def refuse(path="."):
        if Path(os.fspath(path)).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    for name in ("open", "locked"):
        for split in ("leftImg8bit/train", "gtFine/train", "", "ImageSets/Segmentation"):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "open/a.json").write_text("{}")
    (tmp_path / "gtFine/train/open/a_gtFine_labelIds.png").touch()
    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path


@pytest.mark.parametrize("source", [cityscapes, labelme, huggingface])
def test_sources_refuse_a_folder_that_cannot_be_read(locked, source):
    with pytest.raises(DataError, match=r"locked cannot be read \(Permission denied\)"):
        source.list_samples(str(locked))


def test_predict_refuses_a_folder_that_cannot_be_read(locked):
    with pytest.raises(DataError, match=r"locked cannot be read \(Permission denied\)"):
        list_files(pyarrow.fs.LocalFileSystem(), str(locked))


def test_files_are_those_of_glob_without_hidden_ones(tmp_path):
    for name in ("b/x.json", "b/.x.json", "a/y.json", "a/z.txt", ".git/q.json", "lost+found/w.json", "c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in glob_files(tmp_path, "*/*.json")] == ["a/y.json", "b/x.json"]
    assert glob_files(tmp_path, "*.json") == [tmp_path / "c.json"]
    assert glob_files(tmp_path / "gone", "*/*.json") == []
