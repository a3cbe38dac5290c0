"""The stream: what the plan says, no more and no less, through real Ray Data."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from segray.cluster import cause
from segray.config import DataConfig
from segray.data.augment import Augment
from segray.data.images import decode_image, decode_mask
from segray.data.pieces import Source
from segray.data.plan import Plan, rows_of, slots_of
from segray.data.schema import read_manifest
from segray.data.stream import Means, evaluation_rows, training_batches
from segray.errors import DataError

BATCH = 4
MEANS = Means(read_cpus=0.5, threads=2)


@pytest.fixture(scope="module")
def source(streets):
    return Source(str(streets), read_manifest(str(streets)).split("train"))


def batches(source, slots, start, stop):
    plan = Plan(source.group_rows(), BATCH, seed=3)
    augment = Augment(DataConfig(crop=32), 255)
    return list(training_batches(source, plan, slots, start, stop, augment, MEANS))


def test_an_epoch_over_two_ranks_holds_every_row_once(source):
    steps = -(-source.split.rows // BATCH)
    shares = [batches(source, slots_of(rank, 2, BATCH), 0, steps) for rank in range(2)]
    assert [len(share) for share in shares] == [steps, steps]
    order = np.concatenate([np.concatenate([a["row"], b["row"]]) for a, b in zip(*shares, strict=True)])
    assert Counter(order[: source.split.rows].tolist()) == Counter(range(source.split.rows))


def test_a_global_batch_is_the_same_bytes_for_one_two_and_three_ranks_and_after_a_restart(source):
    whole = batches(source, range(BATCH), 0, 12)
    for world in (2, 3):
        shares = [batches(source, slots_of(rank, world, BATCH), 5, 12) for rank in range(world)]
        for step, parts in enumerate(zip(*shares, strict=True), 5):
            for name in ("image", "mask", "row"):
                joined = torch.cat([part[name] for part in parts])
                assert torch.equal(joined, whole[step][name]), (world, step, name)


def test_a_batch_has_the_shape_and_types_of_the_contract(source):
    batch = batches(source, range(BATCH), 0, 1)[0]
    assert (batch["image"].shape, batch["image"].dtype) == ((BATCH, 3, 32, 32), torch.uint8)
    assert (batch["mask"].shape, batch["mask"].dtype) == ((BATCH, 32, 32), torch.uint8)


def test_row_groups_come_as_they_were_written_and_numbered_through_the_shards(source):
    groups = [9, 0, 3]
    table = source.read(groups)
    rows = [row for row in range(41) if source.group_of([row])[0] in groups]
    assert table["row"].to_pylist() == rows
    assert table["id"].to_pylist() == [f"train/street_{row:05d}" for row in rows]


def test_validation_rows_are_shared_without_loss_and_at_their_own_size(streets):
    split = read_manifest(str(streets)).split("val")
    source = Source(str(streets), split)
    found = [list(evaluation_rows(source, rows_of(rank, 3, split.rows), None, 32, MEANS)) for rank in range(3)]
    assert sorted(len(share) for share in found) == [2, 2, 3]
    rows = [row for share in found for row in share]
    assert [int(row["row"]) for row in rows] == list(range(split.rows))
    stored = source.read([0]).to_pylist()[0]
    mask = decode_mask(stored["mask"])
    assert np.array_equal(rows[0]["mask"][0].numpy(), mask)
    assert decode_image(stored["image"]).shape[:2] == mask.shape
    assert all(side % 32 == 0 for side in rows[0]["image"].shape[-2:])


def test_a_flipped_bit_in_a_shard_is_found_and_the_shard_named(streets, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(streets, copy)
    manifest = read_manifest(str(copy))
    shard = copy / manifest.split("val").shards[0].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    source = Source(str(copy), read_manifest(str(copy)).split("val"))  # its size is right
    with pytest.raises(Exception, match="part-00000") as raised:
        list(evaluation_rows(source, range(7), None, 32, MEANS))
    found = cause(raised.value)
    assert isinstance(found, DataError)
    assert f"{copy}/val/part-00000.parquet" in str(found)
