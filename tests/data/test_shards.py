"""Shards: how samples are cut, and what one row becomes."""

import io
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segray.data.images import decode_mask
from segray.data.schema import COLUMNS, digest_of
from segray.data.shards import FEWEST_SHARDS, Job, Labels, cut, source_ids, write
from segray.data.sources.sample import Sample

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sample(index: int, ids: np.ndarray, image: Image.Image = IMAGE) -> Sample:
    read = [partial(bytes, png(image)), partial(bytes, png(Image.fromarray(ids)))]
    return Sample("train", f"train/{index}", f"i{index}", f"m{index}", 1, *read)


def job(folder, samples, num_classes=4, ignored=(), row_group_rows=2) -> Job:
    labels = Labels(num_classes, frozenset(ignored))
    return Job("part-00000.parquet", tuple(samples), str(folder), labels, row_group_rows)


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=200),
    st.integers(1, 1000),
    st.integers(1, 20),
)
def test_shards_are_whole_row_groups_in_order_and_neither_too_few_nor_too_large(sizes, shard_bytes, rows):
    samples = [Sample("train", str(index), "", "", size, bytes, bytes) for index, size in enumerate(sizes)]
    shards = list(cut(samples, shard_bytes, rows))
    assert [one for shard in shards for one in shard] == samples
    assert all(len(shard) % rows == 0 for shard in shards[:-1])
    for shard in shards:
        # Without its last row group a shard is below the limit.
        assert sum(one.size_bytes for one in shard[: (len(shard) - 1) // rows * rows]) < shard_bytes
        assert len(shard) - rows < len(samples) / FEWEST_SHARDS


def test_a_small_split_still_gives_work_to_several_cores():
    samples = [Sample("train", str(index), "", "", 10_000, bytes, bytes) for index in range(400)]
    assert len(list(cut(samples, 128 * 2**20, 16))) >= 6


def test_rows_follow_the_contract(tmp_path):
    masks = [np.full((6, 9), index % 3, np.uint8) for index in range(5)]
    masks[3][0, :4] = 3
    masks[4][0, :2] = 255
    samples = [sample(index, ids) for index, ids in enumerate(masks)]
    outcome = write(job(tmp_path, samples))
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.schema.equals(COLUMNS)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [one.id for one in samples]
    for row, one, ids in zip(rows, samples, masks, strict=True):
        assert row["image"] == one.read_image()
        assert np.array_equal(decode_mask(row["mask"]), ids)
        assert row["class_pixels"] == [int((ids == index).sum()) for index in range(4)]
        assert (row["height"], row["width"]) == (6, 9)
        assert row["digest"] == digest_of(row["image"], row["mask"])
    assert outcome.problems == []
    assert outcome.class_pixels == np.sum([row["class_pixels"] for row in rows], axis=0).tolist()
    assert outcome.shard.rows == 5
    assert outcome.shard.row_groups == (2, 2, 1)
    assert outcome.shard.bytes == (tmp_path / "part-00000.parquet").stat().st_size
    assert outcome.shard.digest == digest_of(*(row["digest"].encode() for row in rows))
    metadata = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [2, 2, 1]


def test_a_flipped_bit_in_a_page_is_noticed(tmp_path):
    write(job(tmp_path, [sample(0, np.zeros((6, 9), np.uint8))]))
    path = tmp_path / "part-00000.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(png(IMAGE)) + 60] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(("num_classes", "dtype", "ignore"), [(255, np.uint8, 255), (256, np.uint16, 65535)])
def test_ignored_ids_become_the_ignore_id_and_256_classes_take_two_bytes(tmp_path, num_classes, dtype, ignore):
    ids = np.array([[0, num_classes - 1, 300, 301, 65535]], np.uint16)
    image = Image.fromarray(np.zeros((1, 5, 3), np.uint8))
    outcome = write(job(tmp_path, [sample(0, ids, image)], num_classes, ignored=(300, 301)))
    assert outcome.problems == []
    mask = decode_mask(pq.read_table(tmp_path / "part-00000.parquet")["mask"][0].as_py())
    assert mask.dtype == dtype
    assert mask.tolist() == [[0, num_classes - 1, ignore, ignore, ignore]]
    assert sum(outcome.class_pixels) == 2
    assert outcome.highest_id == num_classes - 1


def test_foreign_ids_are_reported_with_their_pixels_and_the_good_rows_are_still_looked_at(tmp_path):
    foreign = np.array([[0, 4, 4, 9, 255, 11]], np.uint8)
    image = Image.fromarray(np.zeros((1, 6, 3), np.uint8))
    samples = [sample(0, foreign, image), sample(1, foreign[:, :5] * 0), sample(2, foreign, image)]
    outcome = write(job(tmp_path, samples, ignored=(11,)))
    expected = "holds id 4 (2 pixels), id 9 (1 pixels); expected ids 0..3 or 255"
    assert outcome.problems[0] == f"m0 {expected}"
    assert outcome.problems[2] == f"m2 {expected}"
    assert "m1 is 5x1 but i1 is 9x6" in outcome.problems[1]
    assert (outcome.rows, outcome.highest_id) == (3, 9)


def test_source_ids_skips_what_cannot_be_read():
    broken = Sample("train", "train/1", "i", "m", 1, bytes, bytes)
    assert source_ids([sample(0, np.array([[3, 7]], np.uint8)), broken]) == {3, 7}


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
        Sample("train", str(index), "i", "m", 1, partial(bytes, png(IMAGE)), partial(read, index)) for index in range(7)
    ]
    write(job(tmp_path, samples, row_group_rows=3))
    assert held == [(3, 3), (6, 3), (7, 1)]
