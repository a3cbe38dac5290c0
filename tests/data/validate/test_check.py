"""Validation reports every error of a damaged dataset in one pass, and none for an intact dataset."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.core.visualize import BACK, LINE, draw_overlay
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.images import decode_image, decode_mask, encode_mask
from segray.data.manifest import COLUMNS, MANIFEST, Manifest, read_manifest
from segray.data.sources import folder
from segray.data.sources.sample import SourceListing
from segray.data.storage import content_hash
from segray.data.validate import contact_sheet, report
from segray.data.validate.dataset import validate_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")

SIZE = (24, 32)
ROWS = {"train": 32, "val": 4, "test": 16}


@pytest.fixture(scope="module")
def healthy(ray_cluster, tmp_path_factory):
    """A dataset with two rows per shard and one row per row group."""
    root = tmp_path_factory.mktemp("check")
    rng = np.random.default_rng(0)
    for split, rows in ROWS.items():
        for side in ("images", "masks"):
            (root / "source" / side / split).mkdir(parents=True)
        for index in range(rows):
            image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8))
            image.save(root / "source" / "images" / split / f"{index:02d}.png")
            mask = Image.fromarray(rng.integers(0, 3, SIZE, np.uint8))
            mask.save(root / "source" / "masks" / split / f"{index:02d}.png")
    result = SourceListing(
        folder.list_samples(str(root / "source")).samples, Classes.from_names(["sky", "road", "car"])
    )
    convert_dataset(result, str(root / "made"), bounds=ShardLimits(group_rows=1, shard_bytes=4000))
    return root / "made"


def test_an_intact_dataset_has_no_errors_and_the_statistics_of_its_manifest(healthy):
    progress = []
    result = validate_dataset(str(healthy), lambda *step: progress.append(step))
    assert (result.errors, result.warnings) == ([], [])
    assert {name: one.rows for name, one in result.splits.items()} == ROWS
    for name, split in read_manifest(str(healthy)).splits.items():
        assert result.splits[name].class_pixels == list(split.class_pixels)
        assert result.splits[name].sizes == {SIZE[::-1]: ROWS[name]}
        assert result.splits[name].bytes == sum(shard.bytes for shard in split.shards)
    assert progress[-1] == ("validating", 52, 52)


class DatasetCopy:
    """A copy of a dataset that a test damages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(str(root))

    def shard(self, number: int, split: str = "train") -> Path:
        return self.root / self.manifest.splits[split].shards[number].path

    def rows(self, number: int, change, split: str = "train", group_rows: int = 1) -> None:
        """Changes the rows of a shard; only the size and the digest in the manifest are updated."""
        path = self.shard(number, split)
        rows = pq.read_table(path).to_pylist()
        change(rows)
        table = pa.Table.from_pylist(rows, COLUMNS)
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        pq.write_table(table, path, row_group_size=group_rows, **options)
        digest = content_hash(*(row["digest"].encode() for row in rows))
        shards = list(self.manifest.splits[split].shards)
        shards[number] = shards[number].model_copy(update={"bytes": path.stat().st_size, "digest": digest})
        self.change(split, shards=tuple(shards))

    def change(self, split: str, **values) -> None:
        """Changes the manifest entry of a split."""
        changed = self.manifest.splits[split].model_copy(update=values)
        self.manifest = self.manifest.model_copy(update={"splits": self.manifest.splits | {split: changed}})

    def write(self, manifest: Manifest) -> None:
        (self.root / MANIFEST).write_text(manifest.model_dump_json())


def update_digest(row):
    row["digest"] = content_hash(row["image"], row["mask"])


def set_image(row, encoded):
    row["image"] = encoded
    update_digest(row)


def set_mask(row, encoded):
    row["mask"] = encoded
    update_digest(row)


def png(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def set_unknown_id(row):
    ids = decode_mask(row["mask"]).copy()
    ids[0, 0] = 7
    set_mask(row, encode_mask(ids))


def swap_images(rows):
    rows[0]["image"], rows[1]["image"] = rows[1]["image"], rows[0]["image"]


def on_first_row(function):
    return lambda rows: function(rows[0])


def test_every_error_is_reported_in_one_pass(healthy, tmp_path):
    dataset = DatasetCopy(Path(shutil.copytree(healthy, tmp_path / "spoilt")))
    train = [row for number in range(16) for row in pq.read_table(dataset.shard(number)).to_pylist()]
    deep = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(SIZE) * 80)
    dataset.rows(0, on_first_row(lambda row: set_image(row, b"no image")))
    dataset.rows(1, on_first_row(lambda row: set_mask(row, b"no mask")))
    dataset.rows(2, on_first_row(set_unknown_id))
    dataset.rows(3, on_first_row(lambda row: set_mask(row, encode_mask(np.zeros((20, 32), np.uint8)))))
    dataset.rows(4, on_first_row(lambda row: row.update(height=32, width=24)))
    dataset.rows(5, on_first_row(lambda row: row.update(class_pixels=[768, 0, 0])))
    dataset.rows(6, swap_images)
    dataset.rows(7, on_first_row(lambda row: row.update(id="train/20")))
    dataset.rows(8, on_first_row(lambda row: row.update(id="val/99")))
    dataset.rows(9, on_first_row(lambda row: set_image(row, png(deep))))
    dataset.rows(10, lambda rows: None, group_rows=2)
    dataset.rows(11, on_first_row(lambda row: set_image(row, train[30]["image"])))
    dataset.rows(0, on_first_row(lambda row: set_image(row, train[31]["image"])), "test")
    dataset.rows(1, lambda rows: rows.pop(), "test")
    with dataset.shard(12).open("r+b") as file:
        file.truncate(dataset.shard(12).stat().st_size - 9)
    damaged = bytearray(dataset.shard(13).read_bytes())
    damaged[damaged.index(train[26]["image"]) + 60] ^= 1
    dataset.shard(13).write_bytes(damaged)
    dataset.shard(14).unlink()
    dataset.change("val", class_pixels=(1, 2, 3), mean_width=9.0)
    (dataset.root / "train" / "notes.txt").touch()
    (dataset.root / ".unfinished").mkdir()
    dataset.rows(
        2, on_first_row(lambda row: set_mask(row, encode_mask(decode_mask(row["mask"]).astype(np.uint16)))), "test"
    )
    dataset.rows(3, on_first_row(lambda row: row.update(id="test/")), "test")
    (dataset.root / "test" / "part-00004.parquet").rename(tmp_path / "outside.parquet")
    shards = list(dataset.manifest.splits["test"].shards)
    shards[4] = shards[4].model_copy(update={"path": "../outside.parquet"})
    shards[5] = shards[5].model_copy(update={"rows": 7})
    dataset.change("test", shards=tuple(shards))
    dataset.manifest = dataset.manifest.model_copy(update={"left_out": 2, "normalised": ("val/no: alpha",)})
    (dataset.root / "left_out.txt").write_text("train/a: no image\n")
    dataset.write(dataset.manifest)  # its digest is the old one
    result = validate_dataset(str(dataset.root))
    expected = {
        "dataset.json: does not match its digest",
        "split val has class_pixels [1, 2, 3]; its masks have",
        "split val has a mean size of 9.0x24.0; its images have 32.0x24.0",
        ".unfinished: state of an unfinished conversion",
        "train/notes.txt: not part of the dataset",
        "part-00000.parquet, row 0 (train/00): its image cannot be read",
        "part-00001.parquet, row 0 (train/02): 7 bytes of a mask column are not a mask",
        "part-00002.parquet, row 0 (train/04): its mask contains the id 7; expected 0..2 or 255",
        "part-00002.parquet, row 0 (train/04): class_pixels are",
        "part-00003.parquet, row 0 (train/06): its mask is 32x20; expected 32x24",
        "part-00003.parquet, row 0 (train/06): class_pixels are",
        "part-00004.parquet, row 0 (train/08): its image is 32x24; expected 24x32",
        "part-00004.parquet, row 0 (train/08): its mask is 32x24; expected 24x32",
        "part-00005.parquet, row 0 (train/10): class_pixels are [768, 0, 0]; its mask has",
        "part-00006.parquet, row 0 (train/12): image or mask changed after the conversion",
        "part-00006.parquet, row 1 (train/13): image or mask changed after the conversion",
        "part-00008.parquet, row 0 (val/99): invalid id; expected train/NAME",
        "part-00009.parquet, row 0 (train/18): its image is not an upright 8-bit JPEG, PNG or WebP (16 bits",
        "part-00010.parquet: row groups of (2,) rows; expected (1, 1)",
        "part-00012.parquet: ",
        "part-00012.parquet: cannot be read",
        "part-00013.parquet: row group 0, rows 0 to 0, is damaged",
        "part-00014.parquet: missing",
        "test/part-00001.parquet: row groups of (1,) rows; expected (1, 1)",
        "test/part-00002.parquet, row 0 (test/04): its mask has 16 bits; expected 8",
        "test/part-00003.parquet, row 0 (test/): invalid id; expected test/NAME",
        "../outside.parquet: path outside the dataset",
        "dataset.json: test/part-00005.parquet has 7 rows, but row groups of (1, 1)",
        "left_out.txt: 1 lines; expected 2, as in the manifest",
        "dataset.json: val/no is listed as re-encoded, but no row has this id",
        "train/20: 2 rows have this id",
        "train/31, test/00: the same image in test and train",
    }
    for line in expected:
        assert any(line in fault for fault in result.errors), line
    unexpected = [fault for fault in result.errors if not any(line in fault for line in expected)]
    assert unexpected == []
    assert result.warnings == ["train/22, train/30: the same image"]
    contact_sheet.save_contact_sheet(str(dataset.root), result.manifest, tmp_path / "sheet.png", per_split=40)


def test_rare_classes_are_warnings(healthy, tmp_path):
    dataset = DatasetCopy(Path(shutil.copytree(healthy, tmp_path / "rare")))
    names = Classes.from_names(["sky", "road", "car", "moose"])

    def widen(rows):
        for row in rows:
            row["class_pixels"].append(0)

    for split, entry in dataset.manifest.splits.items():
        for number in range(len(entry.shards)):
            dataset.rows(number, widen, split)
        dataset.change(split, class_pixels=(*dataset.manifest.splits[split].class_pixels, 0))
    dataset.write(dataset.manifest.model_copy(update={"classes": names}).with_digest())
    result = validate_dataset(str(dataset.root))
    assert result.errors == []
    assert result.warnings == ["class moose: only 0 pixels in 0 images of train"]


def test_the_contact_sheet_and_the_report(healthy, tmp_path):
    result = validate_dataset(str(healthy))
    file = tmp_path / "sheet.png"
    contact_sheet.save_contact_sheet(str(healthy), result.manifest, file)
    picture = np.asarray(Image.open(file))
    assert picture.shape[1] == contact_sheet.COLUMNS * contact_sheet.CELL[0]
    for colour in result.manifest.classes.palette:
        assert (picture == colour).all(-1).any()  # in the legend
    row = pq.read_table(healthy / "train" / "part-00000.parquet").to_pylist()[0]
    overlay = draw_overlay(decode_image(row["image"]), decode_mask(row["mask"]), result.manifest.classes)
    shown = picture[LINE : LINE + contact_sheet.CELL[1] - 2, 2 : contact_sheet.CELL[0] - 2]
    expected = np.asarray(ImageOps.pad(Image.fromarray(overlay), shown.shape[1::-1], color=BACK))
    assert np.array_equal(shown, expected)
    text = report.render_report("<made>", result, "sheet.png")
    for fragment in (
        "&lt;made&gt;",
        "No errors.",
        "No warnings.",
        result.manifest.digest,
        "32 x 24",
        "sheet.png",
        *ROWS,
    ):
        assert fragment in text
    result.errors.append("a <fault>")
    assert "<li>a &lt;fault&gt;</li>" in report.render_report("made", result, "sheet.png")


def test_the_contact_sheet_has_placeholders_for_damaged_rows(healthy, tmp_path):
    dataset = DatasetCopy(Path(shutil.copytree(healthy, tmp_path / "spoilt")))
    dataset.shard(0).write_bytes(b"nothing")
    dataset.rows(1, on_first_row(lambda row: set_image(row, b"no image")))
    contact_sheet.save_contact_sheet(str(dataset.root), dataset.manifest, tmp_path / "sheet.png", per_split=40)
    assert Image.open(tmp_path / "sheet.png").height > 7 * contact_sheet.CELL[1]


def test_wrong_columns_and_missing_splits_are_errors(healthy, tmp_path):
    dataset = DatasetCopy(Path(shutil.copytree(healthy, tmp_path / "spoilt")))
    for path in (dataset.shard(0, "val"), dataset.shard(1, "val")):
        names = {"val/part-00000.parquet": ("id", "name"), "val/part-00001.parquet": ("mask", "label")}
        old, new = names[str(path.relative_to(dataset.root))]
        whole = pq.read_table(path)
        pq.write_table(whole.rename_columns([new if name == old else name for name in whole.column_names]), path)
    result = validate_dataset(str(dataset.root))
    assert sum("columns " in fault for fault in result.errors) == 2
    contact_sheet.save_contact_sheet(str(dataset.root), result.manifest, tmp_path / "sheet.png")
    dataset.write(dataset.manifest.model_copy(update={"splits": {}}).with_digest())
    result = validate_dataset(str(dataset.root))
    assert result.errors[0].endswith("dataset.json: no split")
    contact_sheet.save_contact_sheet(str(dataset.root), result.manifest, tmp_path / "sheet.png")


def test_missing_and_unfinished_datasets_are_errors(tmp_path):
    with pytest.raises(DataError, match="contains no dataset"):
        validate_dataset(str(tmp_path))
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(DataError, match="contains an unfinished conversion"):
        validate_dataset(str(tmp_path))
