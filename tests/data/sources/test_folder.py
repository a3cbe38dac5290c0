"""Folders of image and mask files."""

import os
import pickle
from pathlib import Path

import pytest

from segray.core.errors import DataError
from segray.data.sources import folder
from segray.data.sources.formats import SOURCES


def make(root: Path, layout: tuple[str, str], names: dict[str, list[str]]) -> Path:
    """Writes files that hold their own name; `names` are stems by split."""
    for split, stems in names.items():
        for side, suffix in zip(layout, (".jpg", ".png"), strict=True):
            (root / side / split).mkdir(parents=True, exist_ok=True)
            for stem in stems:
                (root / side / split / (stem + suffix)).write_text(f"{side}/{split}/{stem}")
    return root


def problems(root: Path) -> str:
    return "\n".join(folder.list_samples(str(root)).problems)


@pytest.mark.parametrize("layout", [("images", "masks"), ("img_dir", "ann_dir")])
def test_both_layouts_give_the_pairs_of_each_split_in_order(tmp_path, layout):
    make(tmp_path, layout, {"val": ["a", "c"], "extra": ["d"], "train": ["b", "a"]})
    samples = SOURCES["folder"](str(tmp_path)).samples
    assert [sample.id for sample in samples] == ["train/a", "train/b", "val/a", "val/c", "extra/d"]
    for sample in samples:
        assert sample.read_image().decode() == f"{layout[0]}/{sample.id}"
        assert sample.read_mask().decode() == f"{layout[1]}/{sample.id}"
        assert sample.size_bytes == len(sample.read_image()) + len(sample.read_mask())
        assert sample.split == sample.id.split("/")[0]


def test_a_relative_folder_is_read_from_any_working_directory(tmp_path, monkeypatch):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    monkeypatch.chdir(tmp_path)
    (sample,) = pickle.loads(pickle.dumps(folder.list_samples(".").samples))
    monkeypatch.chdir("/")
    assert sample.read_image() == b"images/train/a"


def test_hidden_files_and_folders_are_skipped(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    (tmp_path / "images" / "train" / ".DS_Store").touch()
    (tmp_path / "images" / "train" / "Thumbs.db").touch()
    (tmp_path / "images" / ".cache").mkdir()
    assert [sample.id for sample in folder.list_samples(str(tmp_path)).samples] == ["train/a"]


def test_class_names_come_from_classes_txt(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    assert folder.list_samples(str(tmp_path)).classes is None
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert folder.list_samples(str(tmp_path)).classes.names == ("sky", "road")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"source folder {tmp_path}/nowhere does not exist"):
        folder.list_samples(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="requires --source DIR"):
        folder.list_samples(None)


def test_a_folder_without_the_layout_is_an_error_that_lists_its_contents(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="contains pictures; expected images/ and masks/ or img_dir/ and ann_dir/"):
        folder.list_samples(str(tmp_path))
    for side in ("images", "masks"):
        (tmp_path / side).mkdir()
    with pytest.raises(DataError, match="images is empty"):
        folder.list_samples(str(tmp_path))


def test_images_and_masks_without_partners_are_problems(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a", "b"], "val": ["c"]})
    (tmp_path / "masks" / "train" / "b.png").unlink()
    (tmp_path / "images" / "val" / "c.jpg").unlink()
    message = problems(tmp_path)
    assert f"{tmp_path}/images/train/b.jpg: image without a mask; expected {tmp_path}/masks/train/b.png" in message
    assert f"{tmp_path}/masks/val/c.png: mask without an image" in message


@pytest.mark.parametrize("side", ["images", "masks"])
def test_an_empty_split_is_a_problem(tmp_path, side):
    make(tmp_path, ("images", "masks"), {"train": ["a"], "val": []})
    if side == "masks":
        (tmp_path / "masks" / "val").rmdir()
    assert f"{tmp_path}/images/val: empty split" in problems(tmp_path)


def test_a_split_without_images_or_masks_is_a_problem(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a"], "val": ["b"]})
    (tmp_path / "masks" / "val").rename(tmp_path / "masks" / "valid")
    assert f"{tmp_path}/masks/val: missing folder" in problems(tmp_path)
    assert f"{tmp_path}/images/valid: missing folder" in problems(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/train/b.heic", "not an image"),
        ("masks/train/b.jpg", "not a mask (lossless)"),
        ("images/train/a.png", "a.jpg has the same stem"),
        ("images/b.jpg", "not in the folder of a split"),
    ],
)
def test_unexpected_files_are_problems(tmp_path, name, message):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    (tmp_path / name).touch()
    assert message in problems(tmp_path)


def test_a_deleted_file_is_an_error_when_it_is_read(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    (sample,) = folder.list_samples(str(tmp_path)).samples
    (tmp_path / "masks" / "train" / "a.png").unlink()
    with pytest.raises(DataError, match=f"{tmp_path}/masks/train/a.png cannot be read"):
        sample.read_mask()


def test_lists_define_the_splits_without_split_folders(tmp_path):
    for side, suffix in (("images", ".jpg"), ("masks", ".png")):
        (tmp_path / side).mkdir()
        for stem in ("a", "b", "c"):
            (tmp_path / side / (stem + suffix)).touch()
    assert [sample.id for sample in folder.list_samples(str(tmp_path)).samples] == ["all/a", "all/b", "all/c"]
    (tmp_path / "val.txt").write_text("b\n\n")
    (tmp_path / "train.txt").write_text("images/c.jpg\r\na\n")
    assert [sample.id for sample in folder.list_samples(str(tmp_path)).samples] == ["train/c", "train/a", "val/b"]
    (tmp_path / "val.txt").write_text("b\na\nd\nb\n")
    for part in (
        "a is also in train.txt; expected it once",
        "b is also in val.txt",
        "images/d.jpg: missing",
        "masks/d.png: missing",
    ):
        assert part in problems(tmp_path)


def test_links_may_point_inside_the_source_only(tmp_path):
    root = make(tmp_path / "source", ("images", "masks"), {"train": ["a"], "val": ["b"]})
    make(tmp_path / "other", ("images", "masks"), {"test": ["c"]})
    (root / "images/train/a.jpg").rename(root / "a.jpg")
    (root / "images/train/a.jpg").symlink_to(root / "a.jpg")
    (tmp_path / "link").symlink_to(root)
    (image, _) = (sample.read_image() for sample in folder.list_samples(str(tmp_path / "link")).samples)
    assert image == b"images/train/a"
    (root / "a.jpg").unlink()
    (root / "images/val/b.jpg").unlink()
    (root / "images/val/b.jpg").symlink_to("/etc/hostname")
    for side in ("images", "masks"):
        (root / side / "test").symlink_to(tmp_path / "other" / side / "test")
    for part in (
        "images/train/a.jpg: broken link",
        "images/val/b.jpg: outside the source (/etc/hostname); copy the image into it",
        f"images/test/c.jpg: outside the source ({tmp_path}/other/images/test/c.jpg)",
        f"masks/test/c.png: outside the source ({tmp_path}/other/masks/test/c.png); copy the mask into it",
    ):
        assert part in problems(root)


def test_a_name_that_is_not_utf8_is_an_encodable_problem(tmp_path):
    make(tmp_path, ("images", "masks"), {"train": ["a"]})
    for side, suffix in (("images", b".jpg"), ("masks", b".png")):
        Path(os.fsdecode(os.fsencode(tmp_path / side / "train") + b"/\xff" + suffix)).touch()
    (image, mask) = folder.list_samples(str(tmp_path)).problems
    assert "\\udcff.jpg': the name is not valid UTF-8" in image
    assert (image + mask).encode()
