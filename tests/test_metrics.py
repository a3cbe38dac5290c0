"""Scores against a loop over pixels, and the counts' independence of order and sharding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.metrics import confusion, scores

IGNORE = 255


@st.composite
def pixels(draw):
    classes = draw(st.integers(1, 6))
    count = draw(st.integers(0, 60))
    ids = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
    truth = [IGNORE if draw(st.integers(0, 5)) == 0 else true for true in draw(ids)]
    return classes, truth, draw(ids)


def brute_force(classes, truth, found):
    """IoU, recall and accuracy by their definitions, a pixel at a time; none where undefined."""
    pairs = [(true, guess) for true, guess in zip(truth, found, strict=True) if true != IGNORE]
    iou, recall = [], []
    for one in range(classes):
        both = sum(true == one and guess == one for true, guess in pairs)
        either = sum(one in (true, guess) for true, guess in pairs)
        real = sum(true == one for true, _ in pairs)
        iou.append(both / either if either else None)
        recall.append(both / real if real else None)
    right = sum(true == guess for true, guess in pairs)
    return iou, recall, right / len(pairs) if pairs else 0.0


def mean(values):
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else 0.0


@settings(deadline=None)
@given(pixels())
def test_scores_equal_their_definitions(case):
    classes, truth, found = case
    counts = confusion(torch.tensor(found), torch.tensor(truth), classes, IGNORE).numpy()
    result = scores(counts, [str(one) for one in range(classes)])
    iou, recall, accuracy = brute_force(classes, truth, found)
    assert list(result.iou.values()) == pytest.approx(iou)
    assert (result.miou, result.macc, result.aacc) == pytest.approx((mean(iou), mean(recall), accuracy))
    assert result.pixels == sum(true != IGNORE for true in truth)


@settings(deadline=None)
@given(pixels(), st.integers(1, 5), st.randoms())
def test_any_sharding_and_order_gives_the_same_counts(case, shards, random):
    classes, truth, found = case
    whole = confusion(torch.tensor(found), torch.tensor(truth), classes, IGNORE)
    order = list(range(len(truth)))
    random.shuffle(order)
    parts = [
        confusion(
            torch.tensor([found[i] for i in order[part::shards]]),
            torch.tensor([truth[i] for i in order[part::shards]]),
            classes,
            IGNORE,
        )
        for part in range(shards)
    ]
    assert torch.equal(sum(parts), whole)


def test_absent_classes_are_skipped_and_listed_and_predicted_ones_count_as_zero():
    counts = np.zeros((3, 3), np.int64)
    counts[0, 0], counts[0, 1] = 8, 2
    result = scores(counts, ["road", "car", "ghost"])
    assert result.absent == ("ghost",)
    assert result.without_truth == ("car",)
    assert result.iou == {"road": 0.8, "car": 0.0, "ghost": None}
    assert result.miou == pytest.approx(0.4)
    assert result.named("val") == {
        "val/miou": pytest.approx(0.4),
        "val/macc": 0.8,
        "val/aacc": 0.8,
        "val/iou/road": 0.8,
        "val/iou/car": 0.0,
    }


def test_masks_of_many_classes_and_of_sixteen_bits_are_counted():
    mask = torch.tensor([[999, 65535], [0, 300]])
    counts = confusion(torch.tensor([[999, 5], [1, 300]]), mask, 1000, 65535)
    assert counts.sum() == 3
    assert (counts[999, 999], counts[300, 300], counts[0, 1]) == (1, 1, 1)
