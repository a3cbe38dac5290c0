"""ADE20K's scene parsing benchmark, laid out as published (ADEChallengeData2016)."""

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.sources.formats import SOURCES

LABELS = np.array([[0, 1, 2, 3, 149, 150]] * 4)


@pytest.fixture
def root(tmp_path, write_image, write_mask):
    root = tmp_path / "ADEChallengeData2016"
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write_image(root / "images" / folder / f"{name}.jpg")
        write_mask(root / "annotations" / folder / f"{name}.png", LABELS)
    rows = [f"{number}\t0.01\t100\t10\tname {number}, another" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    (root / "sceneCategories.txt").touch()
    return root


def test_the_zero_label_is_dropped_once_and_150_classes_stay(root, convert):
    names, rows = convert(SOURCES["ade20k"](str(root)))
    assert names == tuple(f"name {number}" for number in range(1, 151))
    assert rows == dict.fromkeys(("train/ADE_train_00000001", "val/ADE_val_00000001"), [[255, 0, 1, 2, 148, 149]] * 4)


def test_a_wrong_list_of_names_is_an_error(root):
    (root / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DataError, match="objectInfo150.txt has 1 classes; expected 150"):
        SOURCES["ade20k"](str(root))
