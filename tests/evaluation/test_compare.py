"""Two models on the same images: differences that are there are told, and no others."""

import json

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.evaluation.compare import compare
from segray.evaluation.counter import Counts, ImageCounts
from segray.evaluation.metrics.bootstrap import _weights
from segray.evaluation.metrics.calibration import NUM_BINS

NAMES = ("road", "car", "sky")
IDS = {row: f"val/{row}" for row in range(100)}


def counts(rows, hits, seed=0):
    """Counts of images of 200 pixels, of which a share is right; the truth is the same for all seeds."""
    truths, random = np.random.default_rng(1), np.random.default_rng(seed)
    found = Counts(np.zeros((3, 3), np.int64), np.zeros((NUM_BINS, 3), np.int64))
    for row in rows:
        truth, guess = truths.integers(0, 2, 200), random.integers(0, 2, 200)
        ids = np.where(random.random(200) < hits, truth, guess)
        own = np.bincount(truth * 3 + ids, minlength=9).reshape(3, 3)
        found.images[row] = ImageCounts.from_confusion(own)
        found.confusion += own
    return found


def test_a_model_is_no_better_than_itself():
    some = counts(range(20), 0.5)
    found = compare(some, some, NAMES, IDS)
    assert found.miou.delta == 0
    assert tuple(found.miou.interval) == (0, 0)
    assert (found.improved, found.regressed) == ((), ())
    assert not found.miou.is_significant
    assert found.summary_line("a", "b").startswith("no significant difference between a and b: mIoU 0.")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"), [(0.6, 0.5, "a is better than b"), (0.5, 0.6, "a is worse than b")]
)
def test_a_difference_that_is_there_is_told(ours, theirs, said):
    found = compare(counts(range(60), ours), counts(range(60), theirs, seed=5), NAMES, IDS)
    assert found.miou.is_significant
    assert found.summary_line("a", "b").startswith(f"{said}: mIoU")
    assert (found.miou.delta > 0) == (ours > theirs) == (len(found.improved) > len(found.regressed))
    gains = [image.delta for image in found.images]
    assert gains == sorted(gains, reverse=True)
    assert [image.delta for image in found.regressed] == sorted(image.delta for image in found.regressed)


def test_chance_alone_is_rarely_told():
    told = sum(
        compare(
            counts(range(40), 0.5, seed), counts(range(40), 0.5, seed + 1000), NAMES, IDS, num_resamples=300
        ).miou.is_significant
        for seed in range(60)
    )
    assert told <= 9  # 3 are expected; more than 9 would happen once in a thousand times


def test_the_intervals_are_those_of_a_plain_loop():
    ours, theirs = counts(range(12), 0.6), counts(range(12), 0.5, seed=3)
    found = compare(ours, theirs, NAMES, IDS, num_resamples=50)
    (weights,) = _weights(12, 50, 0)
    gains = []
    for times in weights:
        mious = []
        for model in (ours, theirs):
            table = sum(int(times[row]) * model.images[row].dense(3) for row in range(12))
            union = table[:, 1] + table[:, 2] - table[:, 0]
            mious.append(np.mean([right / both for right, both in zip(table[:, 0], union, strict=True) if both]))
        gains.append(mious[0] - mious[1])
    assert found.miou.interval == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    images = [
        np.mean([(table[:2, 0] / (table[:2, 1] + table[:2, 2] - table[:2, 0])).mean() for table in tables])
        for tables in ([model.images[row].dense(3) for row in range(12)] for model in (ours, theirs))
    ]
    assert (found.image_miou.candidate, found.image_miou.baseline) == pytest.approx(images)
    assert found.image_miou.interval.low < found.image_miou.delta < found.image_miou.interval.high


def test_few_images_tell_nothing():
    few = compare(counts(range(9), 0.9), counts(range(9), 0.1, seed=5), NAMES, IDS)
    assert few.miou.interval.low > 0
    assert not few.miou.is_significant
    assert "no significant difference" in few.summary_line("a", "b")


def test_a_class_of_few_images_is_not_told():
    ours, theirs = counts(range(40), 0.6), counts(range(40), 0.5, seed=3)
    for model, right in ((ours, 9), (theirs, 1)):
        matrix = np.zeros((3, 3), np.int64)
        matrix[2, 2], matrix[2, 0] = right, 10 - right
        model.images[40] = ImageCounts.from_confusion(matrix)
    found = compare(ours, theirs, NAMES, IDS)
    assert found.iou["sky"].num_samples == 1
    assert found.iou["sky"].interval.low > 0
    assert not found.iou["sky"].is_significant
    assert found.iou["road"].num_samples == 41


def test_groups_are_drawn_as_one():
    ours, theirs = counts(range(60), 0.6), counts(range(60), 0.5, seed=3)
    videos = {row: f"video {row // 4}" for row in range(60)}
    alone, grouped = (compare(ours, theirs, NAMES, IDS, groups=groups) for groups in (None, videos))
    assert grouped.miou.delta == alone.miou.delta
    assert (alone.miou.num_samples, grouped.miou.num_samples) == (60, 15)
    assert grouped.image_miou.candidate == alone.image_miou.candidate
    assert grouped.summary_line("a", "b").endswith("(paired bootstrap over 15 groups)")
    same = dict.fromkeys(range(60), "all")
    assert compare(ours, theirs, NAMES, IDS, groups=same).miou.interval == pytest.approx([alone.miou.delta] * 2)


def test_images_of_which_nothing_is_counted_are_no_images():
    ours, theirs = counts(range(20), 0.6), counts(range(20), 0.5, seed=3)
    before = compare(ours, theirs, NAMES, IDS)
    for model in (ours, theirs):
        model.images |= {row: ImageCounts.from_confusion(np.zeros((3, 3), np.int64)) for row in range(20, 40)}
    after = compare(ours, theirs, NAMES, IDS)
    assert (after.image_miou.candidate, len(after.images)) == (before.image_miou.candidate, 20)


def test_what_absent_classes_are_counts():
    pair = counts(range(20), 0.6), counts(range(20), 0.5, seed=3)
    skip, zero = (compare(*pair, NAMES, IDS, absent=absent).miou for absent in ("skip", "zero"))
    assert zero.candidate == pytest.approx(skip.candidate * 2 / 3)
    assert zero.interval == pytest.approx([end * 2 / 3 for end in skip.interval])


def test_a_class_that_is_nowhere_has_no_gain_and_json_holds_no_nan():
    found = compare(counts(range(5), 0.6), counts(range(5), 0.5), NAMES, IDS)
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["iou"]["sky"] == {"ours": None, "theirs": None, "gain": None, "low": None, "high": None}
    assert written["miou"]["gain"] == pytest.approx(found.miou.candidate - found.miou.baseline)
    assert not found.iou["sky"].is_significant
    assert len(written["images"]) == 5


def test_other_rows_are_refused():
    with pytest.raises(DataError, match="not evaluated on the same images"):
        compare(counts(range(5), 0.5), counts(range(6), 0.5), NAMES, IDS)
    with pytest.raises(DataError, match="not evaluated on the same images"):
        compare(counts([], 0.5), counts([], 0.5), NAMES, IDS)
