"""Splits by fraction: whole, fixed, and groups kept together."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.core.errors import DataError
from segray.data.convert.splits import assign_splits, parse_fractions
from segray.data.sources.sample import SourceSample

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def frames(videos, each, folder="all"):
    names = [f"{folder}/video{video}_{frame:03d}" for video in range(videos) for frame in range(each)]
    return [SourceSample(folder, name, "", "", 1, bytes, bytes) for name in names]


def test_fractions_are_for_train_and_val_or_all_three():
    assert parse_fractions("0.8/0.1/0.1") == SHARES
    assert parse_fractions("0.75/0.25") == {"train": 0.75, "val": 0.25}


@pytest.mark.parametrize("text", ["0.8", "0.8/0.1", "0.8/0.3/-0.1", "a/b", "0.7/0.1/0.1/0.1", "1/0", "nan/0.5/0.5", ""])
def test_invalid_fractions_are_errors(text):
    with pytest.raises(DataError, match="--split is"):
        parse_fractions(text)


@given(st.integers(10, 300), st.randoms())
def test_every_sample_is_in_one_split_regardless_of_the_order(count, order):
    samples = frames(1, count)
    result = assign_splits(samples, SHARES)
    assert sorted(one.id.split("/")[1] for one in result) == sorted(one.id.split("/")[1] for one in samples)
    assert all(one.id.startswith(f"{one.split}/") for one in result)
    for name, share in SHARES.items():
        assert abs(len([one for one in result if one.split == name]) - share * count) <= 1
    order.shuffle(samples)
    assert assign_splits(samples, SHARES) == result


def test_frames_of_a_video_stay_together():
    samples = frames(20, 10)
    random.Random(0).shuffle(samples)
    result = assign_splits(samples, SHARES, r"video(\d+)_")
    of_video = {video: {one.split for one in result if f"/video{video}_" in one.id} for video in range(20)}
    assert all(len(splits) == 1 for splits in of_video.values())
    assert {name: len([one for one in result if one.split == name]) for name in SHARES} == {
        "train": 160,
        "val": 20,
        "test": 20,
    }
    whole = assign_splits(samples, SHARES, "video[0-9]+")  # without a group, all that matches
    assert len({(one.split, one.id.split("/")[1].split("_")[0]) for one in whole}) == 20


def test_frames_of_a_video_from_several_splits_stay_together():
    samples = frames(20, 5, "train") + [
        SourceSample("val", one.id.replace("all", "val").replace("_00", "_01"), "", "", 1, bytes, bytes)
        for one in frames(20, 5)
    ]
    result = assign_splits(samples, SHARES, r"^(.*)_\d+$")
    for video in range(20):
        assert len({one.split for one in result if f"/video{video}_" in one.id}) == 1
    assert len({one.id for one in result}) == 200


def test_ids_keep_the_previous_split_if_there_were_several():
    samples = frames(1, 10, "left") + frames(1, 10, "right")
    result = assign_splits(samples, {"train": 0.5, "val": 0.5})
    assert len({one.id for one in result}) == 20
    assert {one.id.split("/")[1] for one in result} == {"left", "right"}


def test_impossible_splits_are_errors():
    with pytest.raises(DataError, match=r"--group-by is \(, which is not a valid regular expression"):
        assign_splits(frames(1, 10), SHARES, "(")
    with pytest.raises(DataError, match=r"--group-by film does not match 10 ids:\n  video0_000"):
        assign_splits(frames(1, 10), SHARES, "film")
    with pytest.raises(DataError, match="--split leaves val, test empty: there are 10 samples in 1 groups"):
        assign_splits(frames(1, 10), SHARES, r"video\d")
