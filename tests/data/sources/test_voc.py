"""Pascal VOC 2012, laid out as published."""

import numpy as np
import pytest

from segray.core.classes import default_palette
from segray.data.sources.formats import SOURCES

IDS = [[0, 1, 2, 15, 20, 255]] * 4


@pytest.fixture
def root(tmp_path, write_image, write_mask):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    palette = [(0, 0, 0), *default_palette(255)]
    for stem in ("2007_000032", "2007_000033", "2007_000039"):
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        write_mask(root / "SegmentationClass" / f"{stem}.png", IDS, palette)
        write_mask(root / "SegmentationObject" / f"{stem}.png", np.ones((4, 6)), palette)
    write_image(root / "JPEGImages" / "2008_000001.jpg")  # of another task
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000033\n2007_000039\n")
    return root


def test_lists_define_the_splits_and_palette_indices_are_ids(root, convert):
    names, rows = convert(SOURCES["voc"](str(root)))
    assert (len(names), names[0], names[15], names[20]) == (21, "background", "person", "tvmonitor")
    assert rows == dict.fromkeys(("train/2007_000032", "train/2007_000039", "val/2007_000033"), IDS)


def test_missing_files_of_a_list_are_problems(root):
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000050\n2007_000051\n")
    result = SOURCES["voc"](str(root))
    assert [sample.id for sample in result.samples] == ["train/2007_000032", "train/2007_000039", "val/2007_000033"]
    assert [line.split(":")[0].removeprefix(f"{root}/") for line in result.problems] == [
        "JPEGImages/2007_000050.jpg",
        "SegmentationClass/2007_000050.png",
        "JPEGImages/2007_000051.jpg",
        "SegmentationClass/2007_000051.png",
    ]


def test_an_id_in_two_lists_is_a_problem_and_trainval_replaces_a_missing_list(root):
    lists = root / "ImageSets/Segmentation"
    (lists / "trainaug.txt").write_text("2007_000032\n./2007_000033\n")
    result = SOURCES["voc"](str(root))
    assert len(result.samples) == 3
    assert "trainaug.txt: 2007_000032 is also in train.txt; expected it once" in result.problems[0]
    assert "2007_000033 is also in val.txt" in result.problems[1]
    for name in ("trainaug", "train", "val"):
        (lists / f"{name}.txt").unlink()
    (lists / "test.txt").write_text("2007_000099\n")
    assert {sample.split for sample in SOURCES["voc"](str(root)).samples} == {"trainval"}
