"""What counts say, against the same said of the images one by one."""

import json

import numpy as np
import pytest

from segray.evaluation.counter import Counts, CountSpec, ImageCounts
from segray.evaluation.metrics.bootstrap import bootstrap, miou, percentile_interval
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.metrics.scores import iou, scores_from_confusion
from segray.evaluation.results import compute_results, results_to_dict

NAMES = ("road", "car", "ghost")
WANTED = CountSpec(3, 255, calibration=True, boundary=(2,), trimap=(3,), images=True)


@pytest.fixture
def matrices():
    random = np.random.default_rng(0)
    made = random.integers(0, 50, (12, 3, 3))
    made[:, 2], made[:, :, 2] = 0, 0
    made[4] = 0  # an image of which nothing is counted
    made[7] = np.diag([90, 0, 0])  # one that is right
    return made


@pytest.fixture
def counts(matrices):
    total = Counts.zeros(WANTED)
    total.confusion = matrices.sum(0)
    total.images = {row: ImageCounts.from_confusion(matrix) for row, matrix in enumerate(matrices)}
    total.boundary[2] = np.array([[1, 2, 4], [3, 3, 3], [0, 0, 0]])
    total.bins[NUM_BINS - 1] = 10, 5, 10 * 2**16
    return total


IDS = {row: f"val/{row:02d}" for row in range(12)}


def test_images_are_listed_worst_first_and_those_without_pixels_are_not(matrices, counts):
    found = compute_results(counts, NAMES, IDS, num_resamples=50)
    expected = {IDS[row]: scores_from_confusion(matrix, NAMES) for row, matrix in enumerate(matrices) if matrix.any()}
    assert {image.id: (image.miou, image.aacc) for image in found.images} == {
        name: (pytest.approx(one.miou), pytest.approx(one.aacc)) for name, one in expected.items()
    }
    assert [image.miou for image in found.images] == sorted(image.miou for image in found.images)
    assert (found.images[-1].id, found.images[-1].miou) == ("val/07", 1.0)


def test_slices_are_scores_of_their_images(matrices, counts):
    of_row = {row: "day" if row % 3 else "night" for row in range(12)}
    found = compute_results(counts, NAMES, IDS, {"light": of_row}, num_resamples=50)
    for value in ("day", "night"):
        rows = [row for row in range(12) if of_row[row] == value]
        expected = scores_from_confusion(matrices[rows].sum(0), NAMES)
        assert found.slices["light"][value] == expected
    assert list(found.slices["light"]) == ["day", "night"]


def test_intervals_hold_the_scores_and_absent_classes_have_none(counts):
    found = compute_results(counts, NAMES, IDS)
    assert found.miou_interval.low < found.scores.miou < found.miou_interval.high
    for name in ("road", "car"):
        low, high = found.iou_intervals[name]
        assert low < found.scores.iou[name] < high
    assert found.iou_intervals["ghost"] is None
    tables = np.stack([counts.images[row].dense(3) for row in range(12)])
    for index, name in enumerate(("road", "car")):
        assert found.iou_intervals[name] == percentile_interval(
            bootstrap(tables, lambda table, at=index: iou(table)[:, at])
        )
    assert found.miou_interval == percentile_interval(bootstrap(tables, miou))


def test_absent_classes_and_beta_are_heeded_everywhere(counts):
    of_row = dict.fromkeys(range(12), "all")
    skip, zero = (
        compute_results(counts, NAMES, IDS, {"light": of_row}, absent=absent, num_resamples=50)
        for absent in ("skip", "zero")
    )
    assert zero.scores.miou == pytest.approx(skip.scores.miou * 2 / 3)
    assert zero.miou_interval == pytest.approx([end * 2 / 3 for end in skip.miou_interval])
    assert zero.slices["light"]["all"].miou == pytest.approx(skip.slices["light"]["all"].miou * 2 / 3)
    assert zero.boundary[2].miou == pytest.approx(skip.boundary[2].miou * 2 / 3)
    double = compute_results(counts, NAMES, IDS, {"light": of_row}, beta=2.0, num_resamples=50)
    for before, after in ((skip.scores, double.scores), (skip.boundary[2], double.boundary[2])):
        assert before.mfscore == pytest.approx(before.mdice)
        assert after.mfscore != pytest.approx(after.mdice)
    assert double.slices["light"]["all"].mfscore == double.scores.mfscore


def test_groups_are_drawn_as_one(counts):
    alone = compute_results(counts, NAMES, IDS)
    one = compute_results(counts, NAMES, IDS, groups=dict.fromkeys(range(12), "all"))
    assert one.miou_interval == pytest.approx([alone.scores.miou] * 2)
    tables = np.stack([counts.images[row].dense(3) for row in range(12)])
    halves = np.stack([tables[:6].sum(0), tables[6:].sum(0)])
    two = compute_results(counts, NAMES, IDS, groups={row: "ab"[row // 6] for row in range(12)})
    assert two.miou_interval == percentile_interval(bootstrap(halves, miou))


def test_bands_and_calibration_are_told_where_they_were_counted(counts):
    found = compute_results(counts, NAMES, IDS, num_resamples=50)
    assert found.boundary[2].iou == {"road": 0.2, "car": 1.0, "ghost": None}
    assert found.trimap[3].pixels == 0
    assert found.calibration.ece == 0.5
    counts.bins[:] = 0
    assert compute_results(counts, NAMES, IDS, num_resamples=50).calibration is None


def test_json_holds_no_nan(counts):
    text = json.dumps(
        results_to_dict(compute_results(counts, NAMES, IDS, absent="nan", num_resamples=50)), allow_nan=False
    )
    found = json.loads(text)
    assert found["scores"]["miou"] is None
    assert found["images"][-1] == {"row": 7, "id": "val/07", "miou": 1.0, "aacc": 1.0}
    assert found["boundary"]["2"]["iou"]["car"] == 1.0
