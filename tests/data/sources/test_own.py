"""A format of one's own: the one that docs/formats.md shows."""

import re
import sys
from pathlib import Path

import pytest

from segray.cli import prepare
from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.sources.formats import SOURCES

DOCUMENT = Path(__file__).parents[3] / "docs" / "formats.md"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "my_format.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_format"
    sys.modules.pop("my_format")


def test_the_documented_source_converts(module, tmp_path, write_image, write_mask, convert):
    root = tmp_path / "mine"
    write_image(root / "rgb" / "a.jpg")
    write_mask(root / "ids" / "a.png", [[0, 1, 2] * 2] * 4)
    (root / "list.txt").write_text("train a\n")
    names, rows = convert(prepare._find_source(f"{module}:find")(str(root)))
    assert names == ("road", "car")
    assert rows == {"train/a": [[255, 0, 1] * 2] * 4}


def test_reordered_class_names_are_errors():
    ours, theirs = Classes.from_names(["background", "road", "car"]), Classes.from_names(["background", "car", "road"])
    with pytest.raises(
        DataError, match="--classes has road at id 1, and the source at id 2; .*: background, car, road"
    ):
        prepare._check_order(ours, theirs)
    prepare._check_order(Classes.from_names(["Hintergrund", "Auto", "road"]), theirs)
    prepare._check_order(ours, None)


def test_errors_of_built_in_sources_are_data_errors_and_those_of_custom_sources_are_not(module, tmp_path, monkeypatch):
    def broken(_source):
        raise KeyError("images")

    monkeypatch.setitem(SOURCES, "voc", broken)
    with pytest.raises(DataError, match=r"cannot be read as format voc \(KeyError: 'images'\)"):
        prepare._read_source("voc", str(tmp_path))
    sys.modules[module] = type(sys)(module)
    sys.modules[module].find = broken
    with pytest.raises(KeyError):
        prepare._read_source(f"{module}:find", str(tmp_path))


def test_an_unknown_source_is_an_error():
    with pytest.raises(DataError, match="--format is 'nowhere:find', which cannot be imported"):
        prepare._find_source("nowhere:find")
    with pytest.raises(DataError, match="--format is cityscape; .*did you mean 'cityscapes'"):
        prepare._find_source("cityscape")
