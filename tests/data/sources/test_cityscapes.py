"""Cityscapes, laid out as published."""

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.sources.formats import SOURCES

LABEL_IDS = np.array(
    [[0, 3, 7, 8, 11, 12], [13, 17, 19, 20, 21, 22], [23, 24, 25, 26, 27, 28], [31, 32, 33, 29, 30, 4]]
)
IGNORED = 255
TRAIN_IDS = [
    [IGNORED, IGNORED, 0, 1, 2, 3],
    [4, 5, 6, 7, 8, 9],
    [10, 11, 12, 13, 14, 15],
    [16, 17, 18, IGNORED, IGNORED, IGNORED],
]
FRAMES = {
    "train": ["aachen/aachen_000000_000019", "zurich/zurich_000001_000019"],
    "val": ["lindau/lindau_000000_000019"],
}


@pytest.fixture
def root(tmp_path, write_image, write_mask):
    for split, frames in FRAMES.items():
        for frame in frames:
            write_image(tmp_path / "city" / "leftImg8bit" / split / f"{frame}_leftImg8bit.png")
            fine = tmp_path / "city" / "gtFine" / split
            write_mask(fine / f"{frame}_gtFine_labelIds.png", LABEL_IDS)
            write_mask(fine / f"{frame}_gtFine_color.png", np.zeros((4, 6, 4)))
            write_mask(fine / f"{frame}_gtFine_instanceIds.png", LABEL_IDS)
            (fine / f"{frame}_gtFine_polygons.json").write_text("{}")
    write_image(tmp_path / "city" / "leftImg8bit" / "test" / "berlin/berlin_000000_000019_leftImg8bit.png")
    return tmp_path / "city"


def test_label_ids_become_the_19_train_ids(root, convert):
    names, rows = convert(SOURCES["cityscapes"](str(root)))
    assert (len(names), names[0], names[18]) == (19, "road", "bicycle")
    assert list(rows) == [f"{split}/{frame}" for split, frames in FRAMES.items() for frame in frames]
    assert all(ids == TRAIN_IDS for ids in rows.values())
    cities = [one.columns["city"] for one in SOURCES["cityscapes"](str(root)).samples]
    assert cities == ["aachen", "zurich", "lindau"]


def test_train_ids_are_used_without_label_ids(root, write_mask, convert):
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        path.unlink()
        write_mask(path.with_name(path.name.replace("labelIds", "labelTrainIds")), TRAIN_IDS)
    _, rows = convert(SOURCES["cityscapes"](str(root)))
    assert all(ids == TRAIN_IDS for ids in rows.values())


def test_images_without_masks_are_problems(root):
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        if "aachen" not in path.name:
            path.unlink()
    result = SOURCES["cityscapes"](str(root))
    assert len(result.problems) == 2
    assert "image without a mask; expected" in result.problems[0]
    assert result.problems[0].endswith("zurich_000001_000019_gtFine_labelIds.png")


def test_masks_without_images_and_splits_without_masks_are_problems(root):
    for path in root.glob("leftImg8bit/train/aachen/*.png"):
        path.unlink()
    extra = root / "leftImg8bit/train_extra/augsburg"
    extra.mkdir(parents=True)
    (extra / "augsburg_000000_000000_leftImg8bit.png").touch()
    (root / "leftImg8bit/extra").mkdir()
    result = SOURCES["cityscapes"](str(root))
    assert [line.split(": ")[1].split(";")[0] for line in result.problems] == [
        "split without masks",
        "mask without an image",
    ]


def test_another_folder_is_an_error_that_lists_its_contents(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(DataError, match=r"leftImg8bit is missing; .* contains something; expected leftImg8bit/<split>"):
        SOURCES["cityscapes"](str(tmp_path))
