"""Interrupted conversions resume, and concurrent conversions exclude each other."""

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
from segray.data.convert.convert import _run_job, convert_dataset
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


def save_sample(root, split, index):
    rng = np.random.default_rng([index, *split.encode()])
    for side, shape in (("images", (*SIZE, 3)), ("masks", SIZE)):
        (root / side / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(root / side / split / f"{index:02d}.png")


@pytest.fixture
def source(tmp_path):
    for split in ("train", "val"):
        for index in range(9):
            save_sample(tmp_path / "source", split, index)
    return tmp_path / "source"


def convert(source, out, **options):
    result = SourceListing(folder.list_samples(str(source)).samples, CLASSES)
    return convert_dataset(result, str(out), bounds=ShardLimits(group_rows=1), **options)


def interrupt_conversion(source, out, after=7, **options):
    def progress(_what, done, _total):
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, on_progress=progress, **options)


@pytest.fixture
def written_shards(monkeypatch):
    """Paths of the shards that conversions of this test write."""
    paths = []

    def recording_map(function, inputs):
        for index, outcome in original_map(function, inputs):
            paths.append(inputs[index].path)
            yield index, outcome

    original_map = map_on_cluster
    monkeypatch.setattr(ingest, "map_on_cluster", recording_map)
    return paths


def test_a_resumed_conversion_equals_an_uninterrupted_one(source, tmp_path, written_shards):
    expected = convert(source, tmp_path / "whole")
    all_shards = set(written_shards)
    written_shards.clear()
    interrupt_conversion(source, tmp_path / "cut")
    with pytest.raises(DataError, match="contains an unfinished conversion; run its command again"):
        read_manifest(str(tmp_path / "cut"))
    kept = {str(path.relative_to(tmp_path / "cut" / UNFINISHED))[:-5] for path in (tmp_path / "cut").rglob("*.json")}
    assert len(kept) >= 4
    written_shards.clear()
    steps = []
    assert convert(source, tmp_path / "cut", on_progress=lambda *step: steps.append(step)) == expected
    assert set(written_shards) == all_shards - kept
    assert steps[0][0] == "resuming"
    assert steps[0][1] >= 7
    same = [(tmp_path / name / "train/part-00000.parquet").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["dataset.json", "train", "val"]


def test_resuming_rewrites_changed_shards_and_removes_stale_ones(source, tmp_path, written_shards):
    interrupt_conversion(source, tmp_path / "out", after=18)
    (tmp_path / "out" / "notes.txt").write_text("not ours")
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "part-00000.parquet").write_text("not ours")
    for side in ("images", "masks"):
        for index in range(4, 9):
            (source / side / "train" / f"{index:02d}.png").unlink()
        (source / side / "val" / "08.png").unlink()
    save_sample(source, "val", 20)
    Image.open(source / "images/val/03.png").rotate(180).save(source / "images/val/03.png")
    written_shards.clear()
    result = convert(source, tmp_path / "out")
    val = {path for path in written_shards if path.startswith("val/")}
    assert val == {"val/part-00001.parquet", "val/part-00004.parquet"}
    assert result == convert(source, tmp_path / "anew")
    shards = {shard.path for split in result.splits.values() for shard in split.shards}
    remaining = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet")}
    assert remaining == shards | {"mine/part-00000.parquet"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "not ours"


def test_missing_and_damaged_shards_are_written_again(source, tmp_path, written_shards):
    interrupt_conversion(source, tmp_path / "out", after=18)
    (tmp_path / "out/train/part-00000.parquet").unlink()
    (tmp_path / "out/train/part-00001.parquet").write_bytes(b"half")
    (tmp_path / "out" / UNFINISHED / "train/part-00002.parquet.json").write_text("{")
    written_shards.clear()
    result = convert(source, tmp_path / "out")
    assert set(written_shards) == {f"train/part-{number:05d}.parquet" for number in range(3)}
    assert result == convert(source, tmp_path / "anew")
    for split in result.splits.values():
        for shard in split.shards:
            assert (tmp_path / "out" / shard.path).read_bytes() == (tmp_path / "anew" / shard.path).read_bytes()


def add_bad_samples(source):
    (source / "images/train/02.png").write_bytes(b"no image")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(source / "masks/val/04.png")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(source / "masks/val/05.png")


def test_all_bad_samples_are_listed_and_the_conversion_resumes_after_a_fix(source, tmp_path, written_shards):
    expected = convert(source, tmp_path / "whole")
    copy = shutil.copytree(source, tmp_path / "copy")
    add_bad_samples(source)
    with pytest.raises(DataError) as raised:
        convert(source, tmp_path / "out")
    for part in ("3 of 18 samples cannot be used", "train/02.png", "val/04.png contains id 9", "val/05.png is 3x3"):
        assert part in str(raised.value)
    for name in ("images/train/02.png", "masks/val/04.png", "masks/val/05.png"):
        shutil.copy(copy / name, source / name)
    written_shards.clear()
    assert convert(source, tmp_path / "out") == expected
    assert len(set(written_shards)) <= 3


def test_bad_samples_are_skipped_and_listed_on_request(source, tmp_path):
    add_bad_samples(source)
    result = convert(source, tmp_path / "out", on_bad="skip")
    assert (result.left_out, result.splits["train"].rows, result.splits["val"].rows) == (3, 8, 7)
    lines = (tmp_path / "out" / SKIPPED_LIST).read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["train/02", "val/04", "val/05"]
    assert "contains id 9 (48 pixels)" in lines[1]
    assert read_manifest(str(tmp_path / "out")) == result


def test_problems_of_the_source_are_skipped_and_listed_on_request(source, tmp_path):
    (source / "images/train/02.png").unlink()
    result = folder.list_samples(str(source))
    result = replace(result, classes=CLASSES)
    with pytest.raises(DataError, match=r"1 files or folders of the source cannot be used:\n .*train/02.png: mask w"):
        convert_dataset(result, str(tmp_path / "out"))
    manifest = convert_dataset(result, str(tmp_path / "out"), on_bad="skip")
    assert (manifest.left_out, manifest.splits["train"].rows) == (1, 8)
    assert "masks/train/02.png: mask without an image" in (tmp_path / "out" / SKIPPED_LIST).read_text()


def test_unusual_file_names_are_converted_without_errors(source, tmp_path):
    (source / "images/train/a\nb.png").write_bytes((source / "images/train/00.png").read_bytes())
    Image.new("RGBA", SIZE[::-1]).save(source / "images/train/a: b.png")
    shutil.copy(source / "masks/train/00.png", source / "masks/train/a: b.png")
    result = replace(folder.list_samples(str(source)), classes=CLASSES)
    odd = (*result.problems, "a name that is no text: \ud800")
    manifest = convert_dataset(replace(result, problems=odd), str(tmp_path / "out"), on_bad="skip")
    assert (manifest.left_out, len(manifest.normalised)) == (2, 1)
    assert validate_dataset(str(tmp_path / "out")).errors == []


def test_twenty_problems_are_shown_and_a_file_lists_all(source, tmp_path):
    for index in range(9, 40):
        save_sample(source, "train", index)
        (source / "images/train" / f"{index:02d}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as raised:
        convert(source, tmp_path / "out")
    message = str(raised.value)
    assert "31 of 49 samples cannot be used:" in message
    assert message.count("unknown format, 8 bytes") == 20
    assert "and 11 more" in message
    assert f"Full list: {tmp_path}/out/problems.txt" in message
    assert len((tmp_path / "out/problems.txt").read_text().splitlines()) == 31
    for index in range(9, 40):
        (source / "images/train" / f"{index:02d}.png").unlink()
        (source / "masks/train" / f"{index:02d}.png").unlink()
    convert(source, tmp_path / "out")
    assert not (tmp_path / "out/problems.txt").exists()


def test_a_dataset_inside_the_output_is_not_modified(source, tmp_path):
    interrupt_conversion(source, tmp_path / "out")
    inner = convert(source, tmp_path / "out" / "other")
    convert(source, tmp_path / "out")
    assert read_manifest(str(tmp_path / "out" / "other")) == inner


def test_an_error_of_a_reader_is_reported_for_its_sample(source, tmp_path):
    result = folder.list_samples(str(source))
    broken = replace(result.samples[3], read_mask=partial(int, "seven"))
    result = SourceListing((*result.samples[:3], broken, *result.samples[4:]), CLASSES)
    with pytest.raises(DataError, match=r"1 of 18 samples[\s\S]*train/03.png cannot be read \(ValueError: invalid"):
        convert_dataset(result, str(tmp_path / "out"))


def read_mask(path):
    if not path.exists():
        raise OSError("the server does not answer")
    return path.read_bytes()


def test_unreadable_samples_are_retried_on_resume(source, tmp_path):
    result = folder.list_samples(str(source))
    unreadable = replace(result.samples[3], read_mask=partial(read_mask, tmp_path / "mask.png"))
    result = SourceListing((*result.samples[:3], unreadable, *result.samples[4:]), CLASSES)
    with pytest.raises(DataError, match="the server does not answer"):
        convert_dataset(result, str(tmp_path / "out"), bounds=ShardLimits(group_rows=1))
    shutil.copy(source / "masks/train/03.png", tmp_path / "mask.png")
    assert convert_dataset(result, str(tmp_path / "out"), bounds=ShardLimits(group_rows=1)) == convert(
        source, tmp_path / "whole"
    )


def test_a_shard_that_is_being_replaced_has_no_result(source, tmp_path, monkeypatch):
    def raise_interrupt(job):
        raise KeyboardInterrupt

    samples = tuple(folder.list_samples(str(source)).samples[:2])
    labels = build_label_map(CLASSES, None)
    job = ShardJob("train/part-00000.parquet", samples, str(tmp_path / "out"), labels, ShardLimits())
    with conversion_lock(job.root, ["train"]):
        _run_job(job)
        assert load_result(job) is not None
        monkeypatch.setattr(ingest, "write_shard", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            _run_job(replace(job, bounds=ShardLimits(group_rows=1)))
        assert load_result(job) is None


def test_a_changed_palette_invalidates_earlier_shards(tmp_path, source):
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

    def interrupt(_what, done, _total):
        if done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_dataset(palette.list_samples(str(source)), str(tmp_path / "out"), on_progress=interrupt, **options)
    (source / "palette.txt").write_text("\n".join(reversed(lines)))
    result = convert_dataset(palette.list_samples(str(source)), str(tmp_path / "out"), **options)
    assert result == convert_dataset(palette.list_samples(str(source)), str(tmp_path / "anew"), **options)


def test_a_split_without_usable_samples_is_an_error(source, tmp_path):
    for path in (source / "masks/val").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no sample of split val can be used; the first problem: .*masks/val/00.png"):
        convert(source, tmp_path / "out", on_bad="skip")


def test_a_file_that_changes_during_the_conversion_is_an_error(source, tmp_path):
    result = SourceListing(folder.list_samples(str(source)).samples, CLASSES)
    path = source / "images/train/05.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # as large as before
    with pytest.raises(DataError, match="images/train/05.png has changed since the conversion started"):
        convert_dataset(result, str(tmp_path / "out"))


HOLD = """
import sys, time
from segray.data.convert.resume import conversion_lock
with conversion_lock(sys.argv[1], ["train", "val"]):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def lock_holder(tmp_path):
    """Another process that holds the conversion lock of `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_conversion_into_a_folder_is_an_error(source, tmp_path, lock_holder):
    with pytest.raises(DataError, match=f"another conversion is writing {tmp_path}/out"):
        convert(source, tmp_path / "out")
    lock_holder.kill()
    lock_holder.wait()
    assert convert(source, tmp_path / "out").splits["val"].rows == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_an_error_and_the_conversion_resumes_with_more_space(tmp_path, written_shards):
    source = tmp_path / "source"
    for index in range(24):
        save_sample(source, "train", index)
        pixels = np.random.default_rng(index).integers(0, 256, (200, 300, 3), np.uint8)
        Image.fromarray(pixels).save(source / "images/train" / f"{index:02d}.png")
        Image.fromarray(pixels[..., 0] % 3).save(source / "masks/train" / f"{index:02d}.png")
    expected = convert(source, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {disk}"):
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(DataError, match="No space left on device"):
            convert(source, disk / "out")
        assert list((disk / "out").rglob("*.partial")) == []
        os.system(f"mount -o remount,size=20m {disk}")
        written_shards.clear()
        assert convert(source, disk / "out") == expected
        assert 0 < len(set(written_shards)) < len(expected.splits["train"].shards)
    finally:
        time.sleep(0.5)
        os.system(f"umount {disk}")
