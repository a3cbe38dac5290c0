"""The stream: what the plan says, no more and no less, through real Ray Data."""

import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.exceptions import OutOfDiskError

from segray.config import DataConfig
from segray.core.errors import CapacityError, DataError, root_cause
from segray.data import prefetch
from segray.data.augment.augmenter import Augmenter
from segray.data.images import decode_image, decode_mask, encode_mask
from segray.data.loader import LoaderResources, _decode_row, evaluation_rows, raise_bad_row, training_batches
from segray.data.manifest import read_manifest
from segray.data.prefetch import share_split
from segray.data.reader import SplitReader
from segray.data.sampler import EpochPlan, rank_rows, rank_slots

BATCH = 4
RESOURCES = LoaderResources(read_cpus=0.5, threads=2)


@pytest.fixture(scope="module")
def source(streets):
    return SplitReader(str(streets), read_manifest(str(streets)).split("train"))


MIXED = {"crop": 32, "mosaic_prob": 0.3, "cut_mix_prob": 0.3}


@pytest.fixture
def bad_source(spoilt):
    return SplitReader(str(spoilt), read_manifest(str(spoilt)).split("train"))


def batches(source, slots, start, stop, window=64, resources=RESOURCES, on_bad=raise_bad_row, **data):
    plan = EpochPlan(source.rows_per_group(), BATCH, 3, window, data.pop("times", None))
    augment = Augmenter(DataConfig(**({"crop": 32} | data)), 255)
    return list(training_batches(source, plan, slots, start, stop, augment, resources, on_bad))


def assert_same(result, expected):
    assert len(result) == len(expected)
    for one, other in zip(result, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("image", "mask", "row"))


def test_an_epoch_over_two_ranks_has_every_row_once(source):
    steps = -(-source.split.rows // BATCH)
    shares = [batches(source, rank_slots(rank, 2, BATCH), 0, steps) for rank in range(2)]
    assert [len(share) for share in shares] == [steps, steps]
    order = np.concatenate([np.concatenate([a["row"], b["row"]]) for a, b in zip(*shares, strict=True)])
    assert Counter(order[: source.split.rows].tolist()) == Counter(range(source.split.rows))


@pytest.mark.parametrize("window", [3, 64])
@pytest.mark.parametrize("data", [{}, MIXED, {"times": np.linspace(0, 2, 41)}], ids=["recipe", "mixed", "sampled"])
def test_global_batches_are_identical_on_one_two_and_three_ranks_and_after_a_restart(source, window, data):
    expected = batches(source, range(BATCH), 0, 12, window, **data)
    for world in (2, 3):
        shares = [batches(source, rank_slots(rank, world, BATCH), 5, 12, window, **data) for rank in range(world)]
        joined = [
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert_same(joined, expected[5:])


def test_batches_are_identical_for_any_number_of_threads(source):
    once = batches(source, range(BATCH), 0, 12, **MIXED)
    assert_same(batches(source, range(BATCH), 0, 12, resources=LoaderResources(1.0, 3), **MIXED), once)


def test_crops_made_on_the_cluster_equal_those_of_the_worker(source):
    once = batches(source, range(BATCH), 0, 12, **MIXED)
    assert_same(batches(source, range(BATCH), 0, 12, resources=LoaderResources(1.0, 1, decode_tasks=2), **MIXED), once)


def test_batches_of_an_albumentations_pipeline_are_reproducible(source):
    own = {"augment": ["ScaledCrop", {"GaussNoise": {"p": 1}}]}
    once = batches(source, range(BATCH), 0, 6, **own)
    assert_same(batches(source, range(BATCH), 3, 6, resources=LoaderResources(1.0, 1, decode_tasks=1), **own), once[3:])


def test_each_row_group_is_read_once_per_epoch_and_not_again_while_cached(source, monkeypatch):
    read = []
    original = prefetch._read
    monkeypatch.setattr(prefetch, "_read", lambda *args: read.append(list(args[1])) or original(*args))
    epoch = source.split.rows // BATCH
    batches(source, range(BATCH), 0, 3 * epoch)
    groups = [group for groups in read for group in groups]
    assert sorted(groups) == list(range(len(source.rows_per_group())))  # small: read once, kept for all epochs
    read.clear()
    batches(source, range(BATCH), 0, epoch, window=2)
    again = Counter(group for groups in read for group in groups)
    assert set(again) == set(range(len(source.rows_per_group())))
    assert again.total() <= len(again) + BATCH  # the border of a slot's share may lie in a group


def test_a_batch_has_the_documented_shapes_and_types(source):
    batch = batches(source, range(BATCH), 0, 1)[0]
    assert (batch["image"].shape, batch["image"].dtype) == ((BATCH, 3, 32, 32), torch.uint8)
    assert (batch["mask"].shape, batch["mask"].dtype) == ((BATCH, 32, 32), torch.uint8)


def test_evaluation_rows_are_distributed_completely_at_their_own_size(streets):
    split = read_manifest(str(streets)).split("val")
    source = SplitReader(str(streets), split)
    result = [list(evaluation_rows(source, rank_rows(rank, 3, split.rows), None, 32, RESOURCES)) for rank in range(3)]
    assert sorted(len(share) for share in result) == [2, 2, 3]
    rows = [row for share in result for row in share]
    assert [int(row["row"]) for row in rows] == list(range(split.rows))
    stored = source.read([0]).to_pylist()[0]
    mask = decode_mask(stored["mask"])
    assert np.array_equal(rows[0]["mask"][0].numpy(), mask)
    assert decode_image(stored["image"]).shape[:2] == mask.shape
    assert all(side % 32 == 0 for side in rows[0]["image"].shape[-2:])


@pytest.mark.parametrize("resources", [RESOURCES, LoaderResources(1.0, 1, decode_tasks=2)], ids=["trainer", "cluster"])
def test_an_undecodable_image_is_an_error_that_names_shard_and_row(bad_source, resources):
    with pytest.raises(DataError) as raised:
        batches(bad_source, range(BATCH), 0, 11, resources=resources)
    shard, row = bad_source.describe_row(5).rsplit(", ", 1), bad_source.describe_row(30).rsplit(", ", 1)
    assert any(f"{path}, {number} (train/street_" in str(raised.value) for path, number in (shard, row))
    assert "not an image" in str(raised.value)


@pytest.mark.parametrize("data", [{}, {"mosaic_prob": 1.0}], ids=["alone", "mixed"])
@pytest.mark.parametrize("resources", [RESOURCES, LoaderResources(1.0, 1, decode_tasks=2)], ids=["trainer", "cluster"])
def test_skipped_bad_rows_do_not_change_other_rows(bad_source, source, resources, data):
    bad = []
    loaded = batches(
        bad_source, range(BATCH), 0, 11, resources=resources, on_bad=lambda error: bad.append(str(error)), **data
    )
    expected = batches(source, range(BATCH), 0, 11, **data)
    names = {bad_source.describe_row(row).removeprefix(bad_source.root) for row in (5, 30)}
    assert {text.removeprefix(bad_source.root).split(" (")[0] for text in bad} == names
    blank = 0
    for one, other in zip(loaded, expected, strict=True):
        assert torch.equal(one["row"], other["row"])
        for slot in range(BATCH):
            if (one["mask"][slot] == 255).all():
                blank += 1
                assert one["image"][slot, :, 0, 0].tolist() == [124, 116, 104]
            else:
                assert torch.equal(one["image"][slot], other["image"][slot])
    assert blank == len(bad)


def test_evaluation_reports_or_skips_a_bad_row(bad_source):
    with pytest.raises(DataError, match=r"train/part-0000\d.parquet, row \d+ \(train/street_00005\): .* not an image"):
        list(evaluation_rows(bad_source, range(41), None, 32, RESOURCES))
    bad = []
    result = list(evaluation_rows(bad_source, range(41), None, 32, RESOURCES, bad.append))
    assert [int(row["row"]) for row in result] == [row for row in range(41) if row not in (5, 30)]
    assert len(bad) == 2


def test_evaluation_names_the_row_of_an_id_that_is_no_class(source, streets):
    num_classes = read_manifest(str(streets)).classes.num_classes
    assert list(evaluation_rows(source, range(2), None, 32, RESOURCES, num_classes=num_classes))
    with pytest.raises(
        DataError, match=rf"row \d+ \(train/\S+\): the mask contains the ids \[.*{num_classes - 1}\] in"
    ):
        list(evaluation_rows(source, range(41), None, 32, RESOURCES, num_classes=num_classes - 1))


def test_evaluation_refuses_an_image_of_another_size_than_its_mask():
    image = encode_mask(np.zeros((40, 50), np.uint8))
    assert _decode_row(0, {0: (image, encode_mask(np.zeros((40, 50), np.uint8)))}, None, 32, 2)
    with pytest.raises(DataError, match="the image is 50x40 and its mask 40x50; expected equal sizes"):
        _decode_row(0, {0: (image, encode_mask(np.zeros((50, 40), np.uint8)))}, None, 32, 2)


def test_a_full_object_store_is_an_error_with_a_hint(source, monkeypatch):
    def full(*_, **__):
        raise OutOfDiskError

    monkeypatch.setattr(prefetch.ray, "get", full)
    with pytest.raises(
        CapacityError, match="the object store of a node and its spill disk are full; .* --object-store-memory"
    ):
        batches(source, range(BATCH), 0, 1)


def test_threads_end_when_the_iterator_is_closed_early(source):
    plan, augment = EpochPlan(source.rows_per_group(), BATCH, 3, 2), Augmenter(DataConfig(crop=32), 255)
    stream = training_batches(source, plan, range(BATCH), 0, 10_000, augment, RESOURCES)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("segray-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_flipped_bit_in_a_shard_is_an_error_that_names_the_shard(streets, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(streets, copy)
    manifest = read_manifest(str(copy))
    shard = copy / manifest.split("val").shards[0].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    source = SplitReader(str(copy), read_manifest(str(copy)).split("val"))  # its size is right
    with pytest.raises(Exception, match="part-00000") as raised:
        list(evaluation_rows(source, range(7), None, 32, RESOURCES))
    result = root_cause(raised.value)
    assert isinstance(result, DataError)
    assert f"{copy}/val/part-00000.parquet" in str(result)


def test_a_shared_split_gives_the_same_batches_without_reading_files(source, tmp_path):
    copy = SplitReader(shutil.copytree(source.root, tmp_path / "copy").__fspath__(), source.split)
    shared = share_split(copy)
    shutil.rmtree(tmp_path / "copy")
    resources = replace(RESOURCES, shared_split=shared)
    assert_same(batches(copy, range(BATCH), 3, 15, resources=resources), batches(source, range(BATCH), 3, 15))
    rows = list(evaluation_rows(copy, range(source.split.rows), None, 32, resources))
    assert_same(rows, list(evaluation_rows(source, range(source.split.rows), None, 32, RESOURCES)))


def test_a_damaged_shard_cannot_be_shared(source, tmp_path):
    copy = SplitReader(shutil.copytree(source.root, tmp_path / "copy").__fspath__(), source.split)
    (tmp_path / "copy" / source.split.shards[1].path).write_bytes(b"x")
    with pytest.raises(DataError, match=r"train/part-00001.parquet"):
        share_split(copy)
