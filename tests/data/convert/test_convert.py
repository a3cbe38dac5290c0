"""Conversions on a real Ray cluster: what they write, and what they refuse."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.convert import convert as ingest
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.images import decode_image, decode_mask
from segray.data.manifest import read_manifest
from segray.data.sources import demo, folder
from segray.data.sources.sample import SourceListing, SourceSample

pytestmark = pytest.mark.usefixtures("ray_cluster")

HEIGHT, WIDTH = 6, 8
NAMES = Classes.from_names(["sky", "road", "car"])


def make_source(root: Path, rows: int = 6, splits: tuple[str, ...] = ("train", "val"), max_id: int = 2) -> Path:
    """Writes image-mask pairs; each mask contains all ids 0..max_id."""
    rng = np.random.default_rng(0)
    for split in splits:
        for side in ("images", "masks"):
            (root / side / split).mkdir(parents=True)
        for index in range(rows):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{index:02d}.png")
            ids = rng.permutation(np.arange(HEIGHT * WIDTH) % (max_id + 1)).reshape(HEIGHT, WIDTH)
            save_mask(root, split, index, ids.astype(np.uint8))
    return root


def save_mask(root: Path, split: str, index: int, ids: np.ndarray) -> None:
    Image.fromarray(ids).save(root / "masks" / split / f"{index:02d}.png")


def convert(root: Path, out: Path, classes: Classes | None = NAMES, absent_ok: bool = False, **options):
    return convert_dataset(
        SourceListing(folder.list_samples(str(root)).samples, classes, None, absent_ok), str(out), **options
    )


def conversion_error(root: Path, out: Path, classes: Classes | None = NAMES, **options) -> str:
    """Returns the error message of a conversion that fails and writes no dataset."""
    with pytest.raises(DataError) as error:
        convert(root, out, classes, **options)
    with pytest.raises(DataError):
        read_manifest(str(out))
    shutil.rmtree(out, ignore_errors=True)
    return str(error.value)


def test_rows_keep_their_order(tmp_path):
    source = make_source(tmp_path / "source", rows=21)
    progress = []
    returned = convert(
        source, tmp_path / "out", on_progress=lambda *steps: progress.append(steps), bounds=ShardLimits(group_rows=2)
    )
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest == returned
    assert list(manifest.splits) == ["train", "val"]
    for name, split in manifest.splits.items():
        tables = [pq.read_table(tmp_path / "out" / shard.path) for shard in split.shards]
        rows = [row for table in tables for row in table.to_pylist()]
        assert len(tables) > 2
        assert [row["id"] for row in rows] == [f"{name}/{index:02d}" for index in range(21)]
        for row in rows:
            stem = row["id"].split("/")[1]
            image, mask = (source / side / name / f"{stem}.png" for side in ("images", "masks"))
            assert np.array_equal(decode_image(row["image"]), np.asarray(Image.open(image)))
            assert np.array_equal(decode_mask(row["mask"]), np.asarray(Image.open(mask)))
        assert split.class_pixels == tuple(np.sum([row["class_pixels"] for row in rows], axis=0).tolist())
        assert (split.mean_height, split.mean_width) == (HEIGHT, WIDTH)
    assert [done for _, done, _ in progress] == sorted({done for _, done, _ in progress})
    assert len(progress) > 5
    assert progress[-1] == ("writing", 42, 42)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_thousand_random_images_and_masks_are_stored_losslessly(tmp_path):
    rng = np.random.default_rng(7)
    source, files = tmp_path / "source", {}
    for side in ("images", "masks"):
        (source / side / "train").mkdir(parents=True)
    for index in range(1000):
        height, width = rng.integers(1, 24, 2)
        pixels = rng.integers(0, 256, (height, width, 3)[: 3 - index % 2], np.uint8)
        suffix = ("png", "jpg", "webp")[index % 3]
        image, mask = (source / side / "train" / str(index) for side in ("images", "masks"))
        Image.fromarray(pixels).save(f"{image}.{suffix}")
        ids = np.array([*range(200), 255], np.uint8)[rng.integers(0, 201, (height, width))]
        Image.fromarray(ids).save(f"{mask}.png")
        files[f"train/{index}"] = (Path(f"{image}.{suffix}").read_bytes(), ids)
    many = Classes.from_names([str(index) for index in range(200)])
    (split,) = convert(source, tmp_path / "out", many, absent_ok=True).splits.values()
    rows = [row for shard in split.shards for row in pq.read_table(tmp_path / "out" / shard.path).to_pylist()]
    assert len(rows) == len(files) == split.rows
    for row in rows:
        image, ids = files[row["id"]]
        assert row["image"] == image
        assert np.array_equal(decode_mask(row["mask"]), ids)
        assert row["class_pixels"] == np.bincount(ids.reshape(-1), minlength=256)[:200].tolist()


def sample(split: str, name: str) -> SourceSample:
    return SourceSample(split, name, "image", "mask", 1, bytes, bytes)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample("train", "train/a")] * 2, "1 sample ids of the source are not unique:\n  train/a"),
        ([sample("train", "val/a")], "expected SPLIT/NAME:\n  val/a in split train"),
        ([sample("train", "train/")], "expected SPLIT/NAME"),
        ([sample("..", "../a")], r"\.\./a in split \.\."),
    ],
)
def test_invalid_sample_ids_are_errors(tmp_path, samples, message):
    with pytest.raises(DataError, match=message):
        convert_dataset(SourceListing(tuple(samples), NAMES), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_digests_do_not_depend_on_the_order_of_completion(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source", rows=9)
    first = convert(source, tmp_path / "first", bounds=ShardLimits(group_rows=1), classes=None)
    monkeypatch.setattr(
        ingest, "map_on_cluster", lambda function, inputs: reversed([*enumerate(map(function, inputs))])
    )
    second = convert(source, tmp_path / "second", bounds=ShardLimits(group_rows=1), classes=None)
    assert second == first
    assert second.digest != convert(source, tmp_path / "third", bounds=ShardLimits(group_rows=2), classes=None).digest


def test_without_class_names_the_masks_determine_the_classes(tmp_path, monkeypatch):
    # More than one task looks for ids, and most of them do not meet the largest.
    monkeypatch.setattr(ingest, "_SCAN_ROWS", 5)
    source = make_source(tmp_path / "source", max_id=4)
    for index in range(6):
        save_mask(source, "val", index, np.eye(HEIGHT, WIDTH, dtype=np.uint8))
    manifest = convert(source, tmp_path / "five", classes=None)
    assert manifest.classes.names == ("class_0", "class_1", "class_2", "class_3", "class_4")
    manifest = convert(source, tmp_path / "four", classes=None, ignore_ids=[4])
    assert manifest.classes.num_classes == 4
    assert sum(manifest.split("train").class_pixels) < 6 * HEIGHT * WIDTH


def test_normalised_images_are_listed_in_the_manifest(tmp_path):
    source = make_source(tmp_path / "source")
    path = source / "images" / "val" / "03.png"
    Image.open(path).convert("RGBA").save(path)
    manifest = convert(source, tmp_path / "out", source={"format": "folder"})
    assert manifest.normalised == ("val/03: alpha, pixels of type RGBA",)
    assert manifest.source == {"format": "folder"}


def test_all_unusable_samples_of_all_shards_are_reported_together(tmp_path):
    source = make_source(tmp_path / "source", rows=9)
    masks, images = source / "masks", source / "images"
    (images / "train" / "01.png").write_bytes((images / "train" / "01.png").read_bytes()[:60])
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(masks / "train" / "08.png")
    save_mask(source, "val", 2, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    save_mask(source, "val", 5, np.full((HEIGHT, WIDTH), 7, np.uint8))
    message = conversion_error(source, tmp_path / "out", bounds=ShardLimits(group_rows=1))
    lines = message.splitlines()
    assert lines[0] == "4 of 18 samples cannot be used:"
    assert f"{images}/train/01.png cannot be read" in lines[1]
    assert f"{masks}/train/08.png is a mask with 3 channels (RGB)" in lines[2]
    assert f"{masks}/val/02.png is 9x6 but {images}/val/02.png is 8x6" in lines[3]
    assert f"{masks}/val/05.png contains id 7 (48 pixels); expected ids 0..2 or 255" in lines[4]


def test_twenty_bad_masks_are_shown_of_all(tmp_path):
    source = make_source(tmp_path / "source", rows=23, splits=("train",), max_id=4)
    message = conversion_error(source, tmp_path / "out")
    assert message.startswith("23 of 23 samples cannot be used:")
    assert message.count("contains id 3 (9 pixels), id 4 (9 pixels)") == 20
    assert "and 3 more" in message
    assert "There are 3 classes, ids 0..2 or 255, but the masks contain ids up to 4" in message


def test_more_names_than_ids_are_errors_unless_allowed(tmp_path):
    source = make_source(tmp_path / "source")
    names = Classes.from_names(["void", *NAMES.names])
    assert "4 class names (ids 0..3) but the largest id in the masks is 2" in conversion_error(
        source, tmp_path / "out", names
    )
    assert convert(source, tmp_path / "out", names, absent_ok=True).split("val").class_pixels[3] == 0


def test_an_ignored_id_that_is_a_class_is_an_error(tmp_path):
    source = make_source(tmp_path / "source")
    for classes in (NAMES, None):
        assert "--ignore-id 1 is also the id of a class" in conversion_error(
            source, tmp_path / "out", classes, ignore_ids=[1]
        )


def test_masks_of_0_and_255_are_errors(tmp_path):
    source = make_source(tmp_path / "source", rows=2, splits=("train",))
    for index in range(2):
        save_mask(source, "train", index, (np.eye(HEIGHT, WIDTH) * 255).astype(np.uint8))
    for classes, options in ((None, {}), (Classes.from_names(["a", "b"]), {"absent_ok": True})):
        assert "store a foreground of 255 as 1" in conversion_error(source, tmp_path / "out", classes, **options)


def test_ids_above_254_require_class_names(tmp_path):
    source = make_source(tmp_path / "source")
    save_mask(source, "train", 0, np.full((HEIGHT, WIDTH), 24_013, np.uint16))
    assert "contain ids up to 24013; expected at most 254 without class names" in conversion_error(
        source, tmp_path / "out", None
    )


def test_unreadable_masks_are_reported_without_class_names_too(tmp_path):
    source = make_source(tmp_path / "source", rows=1, splits=("train",))
    (source / "masks" / "train" / "00.png").write_bytes(b"no image")
    message = conversion_error(source, tmp_path / "out", None)
    assert f"{source}/masks/train/00.png cannot be read" in message


def test_a_non_empty_output_is_an_error_and_not_modified(tmp_path):
    source = make_source(tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    for place, message in ((out, "is not empty"), (out / "mine", "is a file")):
        with pytest.raises(DataError, match=f"output {place} {message}"):
            convert(source, place)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert convert(source, out) == read_manifest(str(out))
    with pytest.raises(DataError, match=f"output {out} contains a dataset"):
        convert(source, out)


def test_an_output_that_cannot_be_created_is_an_error(tmp_path):
    source = make_source(tmp_path / "source", rows=1)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/out cannot be"):
        convert(source, tmp_path / "file" / "out")


def test_a_relative_output_is_resolved_in_the_driver(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source", rows=1)
    monkeypatch.chdir(tmp_path)
    convert(source, Path("out"))
    assert read_manifest(str(tmp_path / "out")).split("val").rows == 1


def test_the_demo_converts(tmp_path):
    samples = demo.demo_samples(splits={"train": 4, "val": 2})
    manifest = convert_dataset(SourceListing(samples, demo.demo_classes(), absent_ok=True), str(tmp_path / "out"))
    assert manifest.classes == demo.demo_classes()
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 4, "val": 2}
    assert manifest.normalised == ()


@pytest.mark.skipif("SEGRAY_CAMVID" not in os.environ, reason="SEGRAY_CAMVID does not name CamVid's folder")
def test_camvid_converts(tmp_path):
    result = folder.list_samples(os.environ["SEGRAY_CAMVID"])
    manifest = convert_dataset(result, str(tmp_path / "out"), ignore_ids=[11])
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert manifest.classes.num_classes == 11
    assert all(all(split.class_pixels) for split in manifest.splits.values())
    assert 0 < sum(manifest.split("train").class_pixels) < 367 * 480 * 360
    assert (manifest.split("val").mean_height, manifest.split("val").mean_width) == (360, 480)
    assert manifest.normalised == ()


def test_large_images_get_small_row_groups(tmp_path):
    """Training holds a row group for every image of a batch."""
    source = make_source(tmp_path / "source", rows=20, splits=("train",))
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (700, 900, 3), np.uint8)
        Image.fromarray(pixels).save(source / "images" / "train" / f"{index:02d}.png")
        save_mask(source, "train", index, (np.arange(700 * 900).reshape(700, 900) % 3).astype(np.uint8))
    groups = [size for shard in convert(source, tmp_path / "out").split("train").shards for size in shard.row_groups]
    assert set(groups) <= {1, 2, 3}
