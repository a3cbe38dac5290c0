"""Scores against a loop over pixels and against torchmetrics, and the counts' independence of order and sharding."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.classification as theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.evaluation.metrics.confusion import confusion_matrix
from segray.evaluation.metrics.scores import group_counts, scores_from_confusion

IGNORE = 255


@st.composite
def pixels(draw):
    classes = draw(st.integers(1, 6))
    count = draw(st.integers(0, 60))
    ids = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
    truth = [IGNORE if draw(st.integers(0, 5)) == 0 else true for true in draw(ids)]
    return classes, truth, draw(ids)


def share(part, whole):
    return part / whole if whole else None


def brute_force(classes, truth, found, beta):
    """Every score by its definition, a pixel at a time; none where undefined."""
    pairs = [(true, guess) for true, guess in zip(truth, found, strict=True) if true != IGNORE]
    by_class = {"iou": [], "dice": [], "precision": [], "recall": [], "fscore": []}
    weighted, chance = 0.0, 0.0
    for one in range(classes):
        both = sum(true == one and guess == one for true, guess in pairs)
        either = sum(one in (true, guess) for true, guess in pairs)
        real, said = (sum(pair[side] == one for pair in pairs) for side in (0, 1))
        by_class["iou"].append(share(both, either))
        by_class["dice"].append(share(2 * both, real + said))
        by_class["precision"].append(share(both, said))
        by_class["recall"].append(share(both, real))
        by_class["fscore"].append(share((1 + beta**2) * both, beta**2 * real + said))
        weighted += (share(both, either) or 0.0) * real
        chance += real * said
    count = len(pairs)
    right = sum(true == guess for true, guess in pairs)
    agreed, chance = share(right, count) or 0.0, chance / count**2 if count else 0.0
    kappa = (agreed - chance) / (1 - chance) if count and chance < 1 else 0.0
    return by_class, agreed, share(weighted, count) or 0.0, kappa


def mean(values):
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else 0.0


@settings(deadline=None)
@given(pixels(), st.sampled_from([0.5, 1.0, 2.0]))
def test_scores_equal_their_definitions(case, beta):
    classes, truth, found = case
    counts = confusion_matrix(torch.tensor(found), torch.tensor(truth), classes, IGNORE).numpy()
    names = [str(one) for one in range(classes)]
    result = scores_from_confusion(counts, names, beta=beta)
    by_class, agreed, weighted, kappa = brute_force(classes, truth, found, beta)
    for metric in ("iou", "dice", "precision", "recall"):
        assert list(getattr(result, metric).values()) == pytest.approx(by_class[metric])
    means = (result.miou, result.mdice, result.mprecision, result.macc, result.mfscore)
    assert means == pytest.approx(tuple(mean(values) for values in by_class.values()))
    assert (result.aacc, result.fwiou) == pytest.approx((agreed, weighted))
    assert result.kappa == pytest.approx(kappa, abs=1e-9)
    assert result.pixels == sum(true != IGNORE for true in truth)
    gone = [name for name, value in zip(names, by_class["iou"], strict=True) if value is None]
    assert list(result.absent) == gone
    zero = scores_from_confusion(counts, names, absent="zero").miou
    assert zero == pytest.approx(sum(value or 0.0 for value in by_class["iou"]) / classes)
    nan = scores_from_confusion(counts, names, absent="nan").miou
    assert math.isnan(nan) if gone else nan == pytest.approx(result.miou)


@pytest.mark.parametrize("classes", [2, 150, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_torchmetrics(classes, seed):
    random = np.random.default_rng([classes, seed])
    truth = random.integers(0, classes, 20_000)
    found = np.where(random.random(20_000) < 0.6, truth, random.integers(0, classes, 20_000))
    truth[random.random(20_000) < 0.1] = 65535
    truth, found = torch.from_numpy(truth), torch.from_numpy(found)
    result = scores_from_confusion(
        confusion_matrix(found, truth, classes, 65535).numpy(), [str(one) for one in range(classes)]
    )
    options = {"num_classes": classes, "ignore_index": 65535}
    for metric, other in (
        ("iou", theirs.MulticlassJaccardIndex),
        ("dice", theirs.MulticlassF1Score),
        ("precision", theirs.MulticlassPrecision),
        ("recall", theirs.MulticlassRecall),
    ):
        expected = other(average="none", **options)(found, truth).tolist()
        ours = [0.0 if value is None else value for value in getattr(result, metric).values()]
        assert ours == pytest.approx(expected, abs=1e-6)
    assert result.aacc == pytest.approx(float(theirs.MulticlassAccuracy(average="micro", **options)(found, truth)))
    assert result.kappa == pytest.approx(float(theirs.MulticlassCohenKappa(**options)(found, truth)), abs=1e-5)


@settings(deadline=None)
@given(pixels(), st.integers(1, 5), st.randoms())
def test_any_sharding_and_order_gives_the_same_counts(case, shards, random):
    classes, truth, found = case
    whole = confusion_matrix(torch.tensor(found), torch.tensor(truth), classes, IGNORE)
    order = list(range(len(truth)))
    random.shuffle(order)
    parts = [
        confusion_matrix(
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
    result = scores_from_confusion(counts, ["road", "car", "ghost"])
    assert result.absent == ("ghost",)
    assert result.without_truth == ("car",)
    assert result.iou == {"road": 0.8, "car": 0.0, "ghost": None}
    assert result.miou == pytest.approx(0.4)
    assert result.as_metrics("val") == {
        "val/miou": pytest.approx(0.4),
        "val/macc": 0.8,
        "val/aacc": 0.8,
        "val/iou/road": 0.8,
        "val/iou/car": 0.0,
    }
    assert result.all_named("val")["val/precision/road"] == 1.0
    assert "val/recall/car" not in result.all_named("val")


def test_a_matrix_that_counted_nothing_scores_zero():
    result = scores_from_confusion(np.zeros((2, 2), np.int64), ["road", "car"])
    assert (result.miou, result.macc, result.aacc, result.kappa, result.pixels) == (0.0, 0.0, 0.0, 0.0, 0)
    assert result.absent == ("road", "car")


class CountedName(str):
    """A group name that counts how often it is compared with another name."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedName.comparisons += 1
        return str.__eq__(self, other)


def test_the_sums_of_groups_are_those_of_a_loop_and_the_work_is_linear():
    random = np.random.default_rng(0)
    tables = random.integers(0, 100, (20_000, 2, 3))
    names = [f"scene {number}" for number in random.integers(0, 2000, len(tables))]
    expected = {}
    for table, name in zip(tables, names, strict=True):
        expected[name] = expected.get(name, 0) + table
    CountedName.comparisons = 0
    found = group_counts(tables, [CountedName(name) for name in names])
    assert list(found) == sorted(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert CountedName.comparisons < 10 * len(tables)
