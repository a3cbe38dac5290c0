"""Sources as people have them, each image of them once under a name of its own."""

import io
import os

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.core.errors import DataError
from segray.data.images import decode_image
from segray.data.manifest import read_manifest
from segray.inference.batch.inputs import CHUNK_IMAGES
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.video import VideoShard
from tests.inference.batch.conftest import pixels

NONE = frozenset()


def pictures(inputs, done=NONE):
    return [one for unit in inputs.shards for _, part in unit.chunks(done) for one in part]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_folder_is_its_images_in_parts_named_by_their_paths(images):
    found = open_inputs(str(images))
    assert (found.images, found.num_skipped, found.is_single) == (40, 1, False)
    assert [unit.images for unit in found.shards] == [16, 16, 8]
    names = [one.name for one in pictures(found)]
    assert names == [*sorted(f"cam{number % 2}/deep/{number:03d}" for number in range(39)), "turned"]
    assert pictures(found)[0].encoded == (images / "cam0/deep/000.jpg").read_bytes()


def test_what_is_done_is_not_read_again(images):
    (images / "turned.jpg").unlink()
    assert pictures(open_inputs(str(images)), frozenset({0})) == []


def test_images_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        Image.fromarray(pixels(0)).save(tmp_path / name)
    assert [one.name for one in pictures(open_inputs(str(tmp_path)))] == ["a.jpg", "a.png", "b"]
    Image.fromarray(pixels(0)).save(tmp_path / "a.jpg.png")
    assert [one.name for one in pictures(open_inputs(str(tmp_path)))] == ["a.jpg", "a.jpg.png", "a.png", "b.png"]


def test_the_version_changes_with_any_file(images):
    before = open_inputs(str(images)).version
    assert open_inputs(str(images)).version == before
    Image.fromarray(pixels(1)).save(images / "turned.jpg")
    assert open_inputs(str(images)).version != before


def test_a_file_that_is_gone_is_a_problem_of_its_own(images):
    found = open_inputs(str(images))
    (images / "turned.jpg").unlink()
    last = pictures(found)[-1]
    assert last.encoded == b""
    assert f"{images}/turned.jpg cannot be read" in last.problem


def test_one_image_is_single(images):
    found = open_inputs(str(images / "turned.jpg"))
    assert found.is_single
    assert [one.name for one in pictures(found)] == ["turned"]


def test_rows_of_a_dataset_bear_their_ids(streets):
    found = open_inputs(str(streets))
    assert found.are_normalized
    assert found.images == sum(split.rows for split in read_manifest(str(streets)).splits.values())
    val = open_inputs(str(streets), "val")
    assert val.images == 7
    assert {one.name.split("/")[0] for one in pictures(val)} == {"val"}
    with pytest.raises(DataError, match="no split 'dev'; it has train, val, test"):
        open_inputs(str(streets), "dev")


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_of_any_make(tmp_path, as_struct):
    cells = [png(pixels(number)) for number in range(37)]
    column = [{"bytes": cell, "path": "x.png"} for cell in cells] if as_struct else cells
    table = pa.table({"pixel_values": column, "file_name": [f"a/{number}.png" for number in range(37)]})
    pq.write_table(table, tmp_path / "some.parquet", row_group_size=20)
    found = open_inputs(str(tmp_path / "some.parquet"))
    assert [one.name for one in pictures(found)] == [f"a/{number}" for number in range(37)]
    assert [one.encoded for one in pictures(found)] == cells
    assert [unit.num_chunks for unit in found.shards] == [2, 2]
    second = [one.name for one in pictures(found, frozenset({0}))]
    assert second == [f"a/{number}" for number in [*range(CHUNK_IMAGES, 20), 36]]
    assert pictures(open_inputs(str(tmp_path)))[36].encoded == cells[36]


def test_rows_without_names_are_numbered_through_the_file(tmp_path):
    table = pa.table({"image": [png(pixels(0)), None, png(pixels(2))]})
    pq.write_table(table, tmp_path / "some.parquet", row_group_size=2)
    found = pictures(open_inputs(str(tmp_path / "some.parquet")))
    assert [one.name for one in found] == [f"some/{number:07d}" for number in range(3)]
    assert found[1].problem == "some/0000001 contains no image bytes"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "a"], "'a' occurs 2 times"),
        (["a", "./a"], "'a' occurs 2 times"),
        (["x//y", "x/y"], "'x/y' occurs 2 times"),
        (["a", "../b"], "'../b' is not a relative path below a folder"),
        (["/etc/b", "a"], "'/etc/b' is not a relative path"),
        (["", "a"], "'' is not a relative path"),
    ],
)
def test_names_that_cannot_be_files_of_their_own_are_refused(tmp_path, names, said):
    pq.write_table(pa.table({"image": [png(pixels(0))] * 2, "id": names}), tmp_path / "some.parquet")
    with pytest.raises(DataError, match=said):
        open_inputs(str(tmp_path / "some.parquet"))


def film(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), number * 5, np.uint8))
    writer.release()


def test_a_videos_frames_come_in_order_and_those_done_are_passed_over(tmp_path):
    film(tmp_path / "street.avi", 40)
    found = open_inputs(str(tmp_path / "street.avi"))
    assert (found.images, found.are_normalized) == (40, True)
    whole = pictures(found)
    assert [one.name for one in whole] == [f"frame-{number:06d}" for number in range(40)]
    greys = [decode_image(one.encoded).mean() for one in whole]
    assert greys == pytest.approx([number * 5 for number in range(40)], abs=2)
    (unit,) = found.shards
    left = dict(unit.chunks(frozenset({0})))
    assert sorted(left) == [1, 2, 3, 4]
    assert [one.encoded for part in left.values() for one in part] == [one.encoded for one in whole[8:]]


@pytest.mark.parametrize("frames", [1, 8, 13, 16])
def test_a_video_that_ends_early_says_so_in_a_part_of_its_own(tmp_path, frames):
    film(tmp_path / "whole.avi", frames)
    unit = VideoShard(str(tmp_path / "whole.avi"), 40, "")
    parts = list(unit.chunks(NONE))
    numbers = [number for number, _ in parts]
    assert numbers == list(range(len(parts)))
    assert [one.name for _, part in parts[:-1] for one in part] == [f"frame-{number:06d}" for number in range(frames)]
    (problem,) = parts[-1][1]
    assert f"only {frames} of 40 frames can be read" in problem.problem
    assert list(unit.chunks(frozenset(numbers))) == []
    assert [number for number, _ in unit.chunks(frozenset(numbers[:-1]))] == numbers[-1:]


def test_a_video_that_cannot_be_opened_any_more_ends_the_job(tmp_path):
    with pytest.raises(DataError, match=r"gone\.avi cannot be opened on .*; the same command resumes the job"):
        list(VideoShard(str(tmp_path / "gone.avi"), 40, "").chunks(NONE))


def test_a_video_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path):
    film(tmp_path / "whole.avi", 40)
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    *frames, problem = pictures(open_inputs(str(tmp_path / "cut.avi")))
    assert 5 < len(frames) < 30
    assert all(frame.encoded for frame in frames)
    assert "frames can be read" in problem.problem


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "does not exist; expected an image, a folder, a video or parquet"),
        (lambda root: root.mkdir(), "contains no images; expected files that end in .jpg"),
        (lambda root: root.with_suffix(".mp4").write_bytes(b"none"), "is not a readable video"),
        (lambda root: root.with_suffix(".parquet").write_bytes(b"none"), "is not readable as parquet"),
        (lambda root: pq.write_table(pa.table({"x": [1]}), root.with_suffix(".parquet")), "no image column"),
        (
            lambda root: pq.write_table(pa.table({"image": [[1.0]]}), root.with_suffix(".parquet")),
            "no image column",
        ),
        (
            lambda root: pq.write_table(pa.table({"image": pa.array([], pa.binary())}), root.with_suffix(".parquet")),
            "contains no rows",
        ),
    ],
)
def test_a_source_without_images_is_refused(tmp_path, make, said):
    make(tmp_path / "some")
    (found,) = list(tmp_path.iterdir()) or [tmp_path / "some"]
    with pytest.raises(DataError, match=said):
        open_inputs(str(found))


def test_links_are_followed_once_and_dead_ones_are_problems(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(pixels(0)).save(root / "a.png")
    (root / "self").symlink_to(root)
    (root / "dead.jpg").symlink_to(root / "nowhere")
    found = pictures(open_inputs(str(root)))
    assert [one.name for one in found] == ["a", "dead"]
    assert "dead.jpg cannot be read" in found[1].problem


def test_names_that_are_no_text_are_listed(tmp_path):
    (tmp_path / os.fsdecode(b"a\xff.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 file names are not valid UTF-8; rename the files:\n  .*a.udcff.png"):
        open_inputs(str(tmp_path))
    with pytest.raises(DataError, match="1 file names are not valid UTF-8"):
        open_inputs(f"{tmp_path}/" + os.fsdecode(b"a\xff.png"))


def test_images_and_parquet_in_one_folder_are_refused(images):
    pq.write_table(pa.table({"image": [b""]}), images / "some.parquet")
    with pytest.raises(DataError, match="contains both images and parquet files"):
        open_inputs(str(images))


def test_a_split_of_what_has_none_is_refused(images):
    with pytest.raises(DataError, match="is not a prepared dataset"):
        open_inputs(str(images), "val")


def test_rows_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    names = ["a.jpg", "a.png", "./b.png", "c.v2"]
    pq.write_table(pa.table({"image": [png(pixels(0))] * 4, "id": names}), tmp_path / "some.parquet")
    assert [one.name for one in pictures(open_inputs(str(tmp_path / "some.parquet")))] == [
        "a.jpg",
        "a.png",
        "b",
        "c.v2",
    ]
