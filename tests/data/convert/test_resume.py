"""Conversions that are cut off, go on, and are not let at each other."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.convert import convert as ingest
from segray.data.convert.convert import _write, convert_dataset
from segray.data.convert.labels import build_label_map
from segray.data.convert.resume import conversion_lock, load_result
from segray.data.convert.shards import ShardJob, ShardLimits
from segray.data.manifest import SKIPPED_LIST, read_manifest
from segray.data.ray_map import map_on_cluster
from segray.data.sources import folder, palette
from segray.data.sources.sample import SourceListing
from segray.data.storage import UNFINISHED
from segray.data.validate.dataset import validate_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")

CLASSES = Classes.from_names(["sky", "road", "car"])
SIZE = (6, 8)


def save(root, split, index):
    rng = np.random.default_rng([index, *split.encode()])
    for side, shape in (("images", (*SIZE, 3)), ("masks", SIZE)):
        (root / side / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(root / side / split / f"{index:02d}.png")


@pytest.fixture
def source(tmp_path):
    for split in ("train", "val"):
        for index in range(9):
            save(tmp_path / "source", split, index)
    return tmp_path / "source"


def made(source, out, **options):
    found = SourceListing(folder.list_samples(str(source)).samples, CLASSES)
    return convert_dataset(found, str(out), bounds=ShardLimits(group_rows=1), **options)


def interrupted(source, out, after=7, **options):
    def progress(_what, done, _total):
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(source, out, on_progress=progress, **options)


@pytest.fixture
def written(monkeypatch):
    """The shards that are written from here on."""
    paths = []

    def spread(function, inputs):
        for index, outcome in original(function, inputs):
            paths.append(inputs[index].path)
            yield index, outcome

    original = map_on_cluster
    monkeypatch.setattr(ingest, "map_on_cluster", spread)
    return paths


def test_a_conversion_that_was_cut_off_goes_on_and_becomes_the_same(source, tmp_path, written):
    whole = made(source, tmp_path / "whole")
    everything = set(written)
    written.clear()
    interrupted(source, tmp_path / "cut")
    with pytest.raises(DataError, match="contains an unfinished conversion; run its command again"):
        read_manifest(str(tmp_path / "cut"))
    kept = {str(path.relative_to(tmp_path / "cut" / UNFINISHED))[:-5] for path in (tmp_path / "cut").rglob("*.json")}
    assert len(kept) >= 4
    written.clear()
    steps = []
    assert made(source, tmp_path / "cut", on_progress=lambda *step: steps.append(step)) == whole
    assert set(written) == everything - kept
    assert steps[0][0] == "resuming"
    assert steps[0][1] >= 7
    same = [(tmp_path / name / "train/part-00000.parquet").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["dataset.json", "train", "val"]


def test_what_changed_meanwhile_is_done_anew_and_what_is_gone_is_removed(source, tmp_path, written):
    interrupted(source, tmp_path / "out", after=18)
    (tmp_path / "out" / "notes.txt").write_text("not ours")
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "part-00000.parquet").write_text("not ours")
    for side in ("images", "masks"):
        for index in range(4, 9):
            (source / side / "train" / f"{index:02d}.png").unlink()
        (source / side / "val" / "08.png").unlink()
    save(source, "val", 20)
    Image.open(source / "images/val/03.png").rotate(180).save(source / "images/val/03.png")
    written.clear()
    found = made(source, tmp_path / "out")
    val = {path for path in written if path.startswith("val/")}
    assert val == {"val/part-00001.parquet", "val/part-00004.parquet"}
    assert found == made(source, tmp_path / "anew")
    shards = {shard.path for split in found.splits.values() for shard in split.shards}
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet")}
    assert left == shards | {"mine/part-00000.parquet"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "not ours"


def test_a_shard_that_vanished_or_is_not_whole_is_written_again(source, tmp_path, written):
    interrupted(source, tmp_path / "out", after=18)
    (tmp_path / "out/train/part-00000.parquet").unlink()
    (tmp_path / "out/train/part-00001.parquet").write_bytes(b"half")
    (tmp_path / "out" / UNFINISHED / "train/part-00002.parquet.json").write_text("{")
    written.clear()
    found = made(source, tmp_path / "out")
    assert set(written) == {f"train/part-{number:05d}.parquet" for number in range(3)}
    assert found == made(source, tmp_path / "anew")
    for split in found.splits.values():
        for shard in split.shards:
            assert (tmp_path / "out" / shard.path).read_bytes() == (tmp_path / "anew" / shard.path).read_bytes()


def spoil(source):
    (source / "images/train/02.png").write_bytes(b"no image")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(source / "masks/val/04.png")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(source / "masks/val/05.png")


def test_every_bad_sample_is_listed_and_once_they_are_mended_it_goes_on(source, tmp_path, written):
    whole = made(source, tmp_path / "whole")
    copy = shutil.copytree(source, tmp_path / "copy")
    spoil(source)
    with pytest.raises(DataError) as raised:
        made(source, tmp_path / "out")
    for part in ("3 of 18 samples cannot be used", "train/02.png", "val/04.png contains id 9", "val/05.png is 3x3"):
        assert part in str(raised.value)
    for name in ("images/train/02.png", "masks/val/04.png", "masks/val/05.png"):
        shutil.copy(copy / name, source / name)
    written.clear()
    assert made(source, tmp_path / "out") == whole
    assert len(set(written)) <= 3


def test_bad_samples_are_left_out_and_listed_if_asked(source, tmp_path):
    spoil(source)
    found = made(source, tmp_path / "out", on_bad="skip")
    assert (found.left_out, found.splits["train"].rows, found.splits["val"].rows) == (3, 8, 7)
    lines = (tmp_path / "out" / SKIPPED_LIST).read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["train/02", "val/04", "val/05"]
    assert "contains id 9 (48 pixels)" in lines[1]
    assert read_manifest(str(tmp_path / "out")) == found


def test_what_a_source_finds_wrong_is_left_out_and_listed_too(source, tmp_path):
    (source / "images/train/02.png").unlink()
    found = folder.list_samples(str(source))
    found = replace(found, classes=CLASSES)
    with pytest.raises(DataError, match=r"1 files or folders of the source cannot be used:\n .*train/02.png: mask w"):
        convert_dataset(found, str(tmp_path / "out"))
    manifest = convert_dataset(found, str(tmp_path / "out"), on_bad="skip")
    assert (manifest.left_out, manifest.splits["train"].rows) == (1, 8)
    assert "masks/train/02.png: mask without an image" in (tmp_path / "out" / SKIPPED_LIST).read_text()


def test_a_dataset_of_odd_names_has_no_fault(source, tmp_path):
    (source / "images/train/a\nb.png").write_bytes((source / "images/train/00.png").read_bytes())
    Image.new("RGBA", SIZE[::-1]).save(source / "images/train/a: b.png")
    shutil.copy(source / "masks/train/00.png", source / "masks/train/a: b.png")
    found = replace(folder.list_samples(str(source)), classes=CLASSES)
    odd = (*found.problems, "a name that is no text: \ud800")
    manifest = convert_dataset(replace(found, problems=odd), str(tmp_path / "out"), on_bad="skip")
    assert (manifest.left_out, len(manifest.normalised)) == (2, 1)
    assert validate_dataset(str(tmp_path / "out")).errors == []


def test_of_many_problems_twenty_are_shown_and_all_are_in_a_file(source, tmp_path):
    for index in range(9, 40):
        save(source, "train", index)
        (source / "images/train" / f"{index:02d}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as raised:
        made(source, tmp_path / "out")
    said = str(raised.value)
    assert "31 of 49 samples cannot be used:" in said
    assert said.count("unknown format, 8 bytes") == 20
    assert "and 11 more" in said
    assert f"Full list: {tmp_path}/out/problems.txt" in said
    assert len((tmp_path / "out/problems.txt").read_text().splitlines()) == 31
    for index in range(9, 40):
        (source / "images/train" / f"{index:02d}.png").unlink()
        (source / "masks/train" / f"{index:02d}.png").unlink()
    made(source, tmp_path / "out")
    assert not (tmp_path / "out/problems.txt").exists()


def test_a_dataset_in_a_folder_of_the_conversion_is_not_touched(source, tmp_path):
    interrupted(source, tmp_path / "out")
    other = made(source, tmp_path / "out" / "other")
    made(source, tmp_path / "out")
    assert read_manifest(str(tmp_path / "out" / "other")) == other


def test_an_error_of_a_reader_is_that_samples(source, tmp_path):
    found = folder.list_samples(str(source))
    broken = replace(found.samples[3], read_mask=partial(int, "seven"))
    found = SourceListing((*found.samples[:3], broken, *found.samples[4:]), CLASSES)
    with pytest.raises(DataError, match=r"1 of 18 samples[\s\S]*train/03.png cannot be read \(ValueError: invalid"):
        convert_dataset(found, str(tmp_path / "out"))


def mask_of(path):
    if not path.exists():
        raise OSError("the server does not answer")
    return path.read_bytes()


def test_what_could_not_be_read_is_tried_again(source, tmp_path):
    found = folder.list_samples(str(source))
    away = replace(found.samples[3], read_mask=partial(mask_of, tmp_path / "mask.png"))
    found = SourceListing((*found.samples[:3], away, *found.samples[4:]), CLASSES)
    with pytest.raises(DataError, match="the server does not answer"):
        convert_dataset(found, str(tmp_path / "out"), bounds=ShardLimits(group_rows=1))
    shutil.copy(source / "masks/train/03.png", tmp_path / "mask.png")
    assert convert_dataset(found, str(tmp_path / "out"), bounds=ShardLimits(group_rows=1)) == made(
        source, tmp_path / "whole"
    )


def test_a_shard_that_is_being_replaced_is_not_taken_for_the_old_one(source, tmp_path, monkeypatch):
    def dies(job):
        raise KeyboardInterrupt

    samples = tuple(folder.list_samples(str(source)).samples[:2])
    labels = build_label_map(CLASSES, None)
    job = ShardJob("train/part-00000.parquet", samples, str(tmp_path / "out"), labels, ShardLimits())
    with conversion_lock(job.root, ["train"]):
        _write(job)
        assert load_result(job) is not None
        monkeypatch.setattr(ingest, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            _write(replace(job, bounds=ShardLimits(group_rows=1)))
        assert load_result(job) is None


def test_a_mask_that_is_made_otherwise_is_made_anew(tmp_path, source):
    """The files are the same, the order of the colours is not."""
    shutil.move(source / "masks", source / "ids")
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    for path in sorted((source / "ids").glob("*/*.png")):
        target = source / "masks" / path.relative_to(source / "ids")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[np.asarray(Image.open(path))]).save(target)
    shutil.rmtree(source / "ids")
    lines = ["0 0 0 sky", "255 0 0 road", "0 0 255 car"]
    (source / "palette.txt").write_text("\n".join(lines))
    options = {"bounds": ShardLimits(group_rows=1)}

    def stopped(_what, done, _total):
        if done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_dataset(palette.list_samples(str(source)), str(tmp_path / "out"), on_progress=stopped, **options)
    (source / "palette.txt").write_text("\n".join(reversed(lines)))
    found = convert_dataset(palette.list_samples(str(source)), str(tmp_path / "out"), **options)
    assert found == convert_dataset(palette.list_samples(str(source)), str(tmp_path / "anew"), **options)


def test_a_split_of_bad_samples_alone_is_an_error(source, tmp_path):
    for path in (source / "masks/val").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no sample of split val can be used; the first problem: .*masks/val/00.png"):
        made(source, tmp_path / "out", on_bad="skip")


def test_a_file_that_changes_while_it_is_converted_is_named(source, tmp_path):
    found = SourceListing(folder.list_samples(str(source)).samples, CLASSES)
    path = source / "images/train/05.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # as large as before
    with pytest.raises(DataError, match="images/train/05.png has changed since the conversion started"):
        convert_dataset(found, str(tmp_path / "out"))


HOLD = """
import sys, time
from segray.data.convert.resume import conversion_lock
with conversion_lock(sys.argv[1], ["train", "val"]):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_conversions_are_not_let_into_one_folder(source, tmp_path, holder):
    with pytest.raises(DataError, match=f"another conversion is writing {tmp_path}/out"):
        made(source, tmp_path / "out")
    holder.kill()
    holder.wait()
    assert made(source, tmp_path / "out").splits["val"].rows == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up_is_told_and_with_more_room_it_goes_on(tmp_path, written):
    source = tmp_path / "source"
    for index in range(24):
        save(source, "train", index)
        pixels = np.random.default_rng(index).integers(0, 256, (200, 300, 3), np.uint8)
        Image.fromarray(pixels).save(source / "images/train" / f"{index:02d}.png")
        Image.fromarray(pixels[..., 0] % 3).save(source / "masks/train" / f"{index:02d}.png")
    whole = made(source, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {disk}"):
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(DataError, match="No space left on device"):
            made(source, disk / "out")
        assert list((disk / "out").rglob("*.partial")) == []
        os.system(f"mount -o remount,size=20m {disk}")
        written.clear()
        assert made(source, disk / "out") == whole
        assert 0 < len(set(written)) < len(whole.splits["train"].shards)
    finally:
        time.sleep(0.5)
        os.system(f"umount {disk}")
