"""Shards: how samples are cut, and what one row becomes."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segray.core.classes import Classes
from segray.data.convert import metadata as columns_module
from segray.data.convert.labels import LabelMap, build_label_map
from segray.data.convert.shards import MIN_SHARDS, ShardJob, ShardLimits, partition_samples, scan_mask_ids, write_shard
from segray.data.images import decode_mask
from segray.data.manifest import COLUMNS
from segray.data.sources.sample import SourceSample
from segray.data.storage import content_hash

FACTS = ({"city": "Ulm", "lens": "wide"}, {"lens": "tele"}, {})
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sample(index: int, ids: np.ndarray, image: Image.Image = IMAGE) -> SourceSample:
    read = [partial(bytes, png(image)), partial(bytes, png(Image.fromarray(ids)))]
    return SourceSample("train", f"train/{index}", f"i{index}", f"m{index}", 1, *read)


def job(folder, samples, num_classes=4, ignored=(), **bounds) -> ShardJob:
    labels = build_label_map(Classes.from_names([str(index) for index in range(num_classes)]), None, ignored)
    return ShardJob(
        "part-00000.parquet", tuple(samples), str(folder), labels, ShardLimits(**{"group_rows": 2} | bounds)
    )


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=200),
    st.integers(1, 1000),
    st.integers(1, 20),
)
def test_shards_are_in_order_and_within_the_limits(sizes, shard_bytes, rows):
    samples = [SourceSample("train", str(index), "", "", size, bytes, bytes) for index, size in enumerate(sizes)]
    shards = list(partition_samples(samples, ShardLimits(shard_bytes=shard_bytes, group_rows=rows)))
    assert [one for shard in shards for one in shard] == samples
    for shard in shards:
        assert sum(one.size_bytes for one in shard[:-1]) < shard_bytes
        assert len(shard) - rows < len(samples) / MIN_SHARDS
    for shard in shards[:-1]:
        assert len(shard) % rows == 0 or sum(one.size_bytes for one in shard) >= shard_bytes


def test_a_small_split_has_several_shards():
    samples = [SourceSample("train", str(index), "", "", 10_000, bytes, bytes) for index in range(400)]
    assert len(list(partition_samples(samples, ShardLimits()))) >= 6


def test_rows_match_the_schema(tmp_path):
    masks = [np.full((6, 9), index % 3, np.uint8) for index in range(5)]
    masks[3][0, :4] = 3
    masks[4][0, :2] = 255
    samples = [sample(index, ids) for index, ids in enumerate(masks)]
    outcome = write_shard(job(tmp_path, samples))
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.schema.equals(COLUMNS)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [one.id for one in samples]
    for row, one, ids in zip(rows, samples, masks, strict=True):
        assert row["image"] == one.read_image()
        assert np.array_equal(decode_mask(row["mask"]), ids)
        assert row["class_pixels"] == [int((ids == index).sum()) for index in range(4)]
        assert (row["height"], row["width"]) == (6, 9)
        assert row["digest"] == content_hash(row["image"], row["mask"])
    assert outcome.problems == []
    assert outcome.class_pixels == np.sum([row["class_pixels"] for row in rows], axis=0).tolist()
    (shard,) = outcome.shards
    assert (shard.path, shard.rows, shard.row_groups) == ("part-00000.parquet", 5, (2, 2, 1))
    assert shard.bytes == (tmp_path / "part-00000.parquet").stat().st_size
    assert shard.digest == content_hash(*(row["digest"].encode() for row in rows))
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]
    metadata = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [2, 2, 1]


def test_a_flipped_bit_in_a_page_is_detected(tmp_path):
    write_shard(job(tmp_path, [sample(0, np.zeros((6, 9), np.uint8))]))
    path = tmp_path / "part-00000.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(png(IMAGE)) + 60] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(("num_classes", "dtype", "ignore"), [(255, np.uint8, 255), (256, np.uint16, 65535)])
def test_ignored_ids_become_the_ignore_id_in_the_mask_dtype(tmp_path, num_classes, dtype, ignore):
    ids = np.array([[0, num_classes - 1, 300, 301, 65535]], np.uint16)
    image = Image.fromarray(np.zeros((1, 5, 3), np.uint8))
    outcome = write_shard(job(tmp_path, [sample(0, ids, image)], num_classes, ignored=(300, 301)))
    assert outcome.problems == []
    mask = decode_mask(pq.read_table(tmp_path / "part-00000.parquet")["mask"][0].as_py())
    assert mask.dtype == dtype
    assert mask.tolist() == [[0, num_classes - 1, ignore, ignore, ignore]]
    assert sum(outcome.class_pixels) == 2
    assert outcome.highest_id == num_classes - 1


def test_unknown_ids_are_reported_and_other_rows_are_still_checked(tmp_path):
    foreign = np.array([[0, 4, 4, 9, 255, 11]], np.uint8)
    image = Image.fromarray(np.zeros((1, 6, 3), np.uint8))
    samples = [sample(0, foreign, image), sample(1, foreign[:, :5] * 0), sample(2, foreign, image)]
    outcome = write_shard(job(tmp_path, samples, ignored=(11,)))
    expected = "contains id 4 (2 pixels), id 9 (1 pixels); expected ids 0..3 or 11 or 255"
    assert outcome.problems[0] == ("train/0", f"m0 {expected}")
    assert outcome.problems[2] == ("train/2", f"m2 {expected}")
    assert "m1 is 5x1 but i1 is 9x6" in outcome.problems[1][1]
    assert outcome.shards == []
    assert list(tmp_path.iterdir()) == []
    assert (outcome.rows, outcome.highest_id) == (3, 9)


def test_scan_mask_ids_skips_unreadable_masks():
    broken = SourceSample("train", "train/1", "i", "m", 1, bytes, bytes)
    assert scan_mask_ids([sample(0, np.array([[3, 7]], np.uint8)), broken], 100) == {3, 7}


def test_memory_holds_one_row_group(tmp_path, monkeypatch):
    held = []
    reads = []

    def read(index: int) -> bytes:
        reads.append(index)
        return png(Image.fromarray(np.zeros((6, 9), np.uint8)))

    original = pq.ParquetWriter.write_table

    def write_table(writer, table, **options):
        held.append((len(reads), table.num_rows))
        original(writer, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    samples = [
        SourceSample("train", str(index), "i", "m", 1, partial(bytes, png(IMAGE)), partial(read, index))
        for index in range(7)
    ]
    write_shard(job(tmp_path, samples, group_rows=3))
    assert held == [(3, 3), (6, 3), (7, 1)]


def test_row_groups_and_shards_are_closed_at_their_limits(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    samples = [sample(index, np.full((60, 90), index % 3, np.uint8), image) for index in range(11)]
    row = len(png(image))
    bounds = {"group_rows": 16, "group_bytes": int(1.5 * row), "shard_bytes": int(3.5 * row)}
    outcome = write_shard(job(tmp_path, samples, **bounds))
    assert [shard.path for shard in outcome.shards] == [f"part-00000{end}.parquet" for end in ("", "-1", "-2")]
    assert [shard.row_groups for shard in outcome.shards] == [(2, 2), (2, 2), (2, 1)]
    assert all(shard.bytes < bounds["shard_bytes"] + 2.5 * row for shard in outcome.shards)
    rows = [row for shard in outcome.shards for row in pq.read_table(tmp_path / shard.path)["id"].to_pylist()]
    assert rows == [one.id for one in samples]
    assert sum(shard.rows for shard in outcome.shards) == outcome.rows == 11


@pytest.mark.parametrize(
    "change",
    [
        lambda original: replace(original, labels=LabelMap(4, original.labels.lookup | {9: None})),
        lambda original: replace(original, bounds=replace(original.bounds, group_rows=3)),
        lambda original: replace(original, samples=(replace(original.samples[0], version="2"),)),
        lambda original: replace(original, path="part-00001.parquet"),
    ],
)
def test_the_job_digest_covers_all_inputs(tmp_path, change):
    original = job(tmp_path, [sample(0, np.zeros((6, 9), np.uint8))])
    assert change(original).digest != original.digest
    assert replace(original, root="elsewhere").digest == original.digest


def test_additional_columns_are_nullable_text(tmp_path):
    samples = [replace(sample(index, np.zeros((6, 9), np.uint8)), columns=facts) for index, facts in enumerate(FACTS)]
    one, other = (replace(job(tmp_path, samples), columns=columns) for columns in ((), ("city", "lens")))
    assert one.digest != other.digest
    assert one.digest == replace(one, samples=tuple(replace(sample, columns={}) for sample in samples)).digest
    write_shard(other)
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.schema.equals(columns_module.shard_schema(("city", "lens")))
    assert table["city"].to_pylist() == ["Ulm", None, None]
    assert table["lens"].to_pylist() == ["wide", "tele", None]
