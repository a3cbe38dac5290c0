"""Masks in colours."""

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.sources.formats import SOURCES

COLOURS = {"road": (128, 64, 128), "car": (0, 0, 142), "Void": (0, 0, 0)}
MASK = [[COLOURS["road"], COLOURS["car"], COLOURS["Void"]] * 2] * 4


@pytest.fixture
def root(tmp_path, write_image, write_mask):
    root = tmp_path / "mine"
    for split in ("train", "val"):
        write_image(root / "images" / split / "a.png")
        write_mask(root / "masks" / split / "a.png", MASK)
    lines = [f"{red} {green}, {blue}\t{name}" for name, (red, green, blue) in COLOURS.items()]
    (root / "palette.txt").write_text("\n".join(lines) + "\n")
    return root


def test_colours_become_ids_and_void_is_ignored(root, convert):
    names, rows = convert(SOURCES["palette"](str(root)))
    assert names == ("road", "car")
    assert rows == {"train/a": [[0, 1, 255] * 2] * 4, "val/a": [[0, 1, 255] * 2] * 4}


def test_an_unknown_colour_is_an_error_that_names_file_and_pixel(root, write_mask, convert):
    mask = np.array(MASK)
    mask[2, 4] = (1, 2, 3)
    mask[3, 0] = (128, 64, 129)
    write_mask(root / "masks" / "val" / "a.png", mask)
    with pytest.raises(DataError) as raised:
        convert(SOURCES["palette"](str(root)))
    file = f"{root}/masks/val/a.png"
    expected = f"{file} contains the unknown colour (1, 2, 3), first at pixel (4, 2), and 2 pixels of unknown colours"
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 road", "line 4 is '1 2 road'; expected `R G B name`"),
        ("1 2 256 tree", "each 0 to 255"),
        ("1 2 3 road", "its name or colour is a duplicate"),
        ("0 0 142 tree", "its name or colour is a duplicate"),
    ],
)
def test_an_invalid_palette_is_an_error(root, line, message):
    with (root / "palette.txt").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        SOURCES["palette"](str(root))
