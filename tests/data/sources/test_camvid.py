"""CamVid in both layouts its users have."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.convert.convert import convert_dataset
from segray.data.sources.formats import SOURCES

IDS = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0] * 6, [11] * 6]
KNOWN = [[255 if index == 11 else index for index in row] for row in IDS]


@pytest.fixture
def tutorial(tmp_path, write_image, write_mask):
    root = tmp_path / "CamVid"
    for split, stem in (("train", "0001TP_006690"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")):
        write_image(root / split / f"{stem}.png")
        write_mask(root / f"{split}annot" / f"{stem}.png", IDS)
        place = "/SegNet/CamVid"
        (root / f"{split}.txt").write_text(f"{place}/{split}/{stem}.png {place}/{split}annot/{stem}.png\n")
    return root


def test_the_tutorials_eleven_classes_and_splits(tutorial, convert):
    names, rows = convert(SOURCES["camvid"](str(tutorial)))
    assert (len(names), names[0], names[10]) == (11, "sky", "bicyclist")
    assert rows == dict.fromkeys(("train/0001TP_006690", "val/0016E5_07959", "test/Seq05VD_f00000"), KNOWN)


@pytest.fixture
def published(tmp_path, write_image, write_mask):
    root = tmp_path / "CamVid"
    colours = [(64, 128, 64), (192, 0, 128), (0, 0, 0), (0, 128, 192)]
    for stem in ("0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961"):
        write_image(root / "701_StillsRaw_full" / f"{stem}.png")
        write_mask(root / "LabeledApproved_full" / f"{stem}_L.png", [[*colours, colours[0], colours[3]]] * 4)
    (root / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\t\tArchway\n0 128 192 Bicyclist\n0 0 0 Void\n")
    return root


def test_the_published_colours_are_classes_and_void_is_ignored(published, convert):
    result = SOURCES["camvid"](str(published))
    names, rows = convert(result)
    assert names == ("Animal", "Archway", "Bicyclist")
    assert result.classes.palette[2] == (0, 128, 192)
    assert set(rows) == {f"all/{stem}" for stem in ("0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961")}
    assert all(ids == [[0, 1, 255, 2, 0, 2]] * 4 for ids in rows.values())


def test_another_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="contains nothing; expected train.txt"):
        SOURCES["camvid"](str(tmp_path))


@pytest.mark.skipif("SEGRAY_CAMVID" not in os.environ, reason="SEGRAY_CAMVID does not name CamVid's folder")
def test_camvid_class_pixels_equal_a_direct_count(tmp_path, ray_cluster):
    """The real data set, its folders of pairs laid out as the tutorial has them."""
    del ray_cluster
    given, root = Path(os.environ["SEGRAY_CAMVID"]), tmp_path / "CamVid"
    for split in ("train", "val", "test"):
        shutil.copytree(given / "images" / split, root / split)
        shutil.copytree(given / "masks" / split, root / f"{split}annot")
        images = sorted((root / split).iterdir())
        lines = [f"/SegNet/CamVid/{split}/{one.name} /SegNet/CamVid/{split}annot/{one.stem}.png\n" for one in images]
        (root / f"{split}.txt").write_text("".join(lines))
    manifest = convert_dataset(SOURCES["camvid"](str(root)), str(tmp_path / "out"))
    for split, entry in manifest.splits.items():
        masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (root / f"{split}annot").iterdir()]
        counts = sum(np.bincount(mask.reshape(-1), minlength=12) for mask in masks)
        assert entry.class_pixels == tuple(counts[:11].tolist())
        assert entry.rows == len(masks)
