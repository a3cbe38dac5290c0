"""Counts of a model over rows: the same on any number of threads, of every pixel once, and of each image."""

import numpy as np
import pytest
import torch

from segray import config
from segray.core.classes import Classes
from segray.evaluation.counter import Counts, CountSpec, accumulate_counts
from segray.evaluation.metrics.boundary import boundary_counts, trimap_counts
from segray.evaluation.metrics.calibration import calibration_bins
from segray.evaluation.metrics.confusion import class_counts, confusion_matrix
from segray.inference.segment import InferenceConfig, segment_with_confidence
from segray.models.build import build_model

CLASSES = Classes.from_names(["road", "car", "sky"])
EVERYTHING = CountSpec(3, 255, calibration=True, boundary=(1, 3), trimap=(2,), images=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(config.build({}), CLASSES).eval()


def rows(number):
    random = np.random.default_rng(0)
    for index in range(number):
        height, width = 40 + index, 60
        yield {
            "image": torch.from_numpy(random.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)),
            "mask": torch.from_numpy(random.choice([0, 1, 2, 255], (1, height, width)).astype(np.uint8)),
            "row": torch.tensor([index + 10]),
        }


def alike(ours, theirs):
    assert np.array_equal(ours.confusion, theirs.confusion)
    assert np.array_equal(ours.bins, theirs.bins)
    for own, other in ((ours.boundary, theirs.boundary), (ours.trimap, theirs.trimap)):
        assert own.keys() == other.keys()
        assert all(np.array_equal(own[width], other[width]) for width in own)
    assert sorted(ours.images) == sorted(theirs.images)
    for row, image in ours.images.items():
        assert np.array_equal(image.dense(3), theirs.images[row].dense(3))
    return True


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_counts_do_not_depend_on_threads_and_hold_every_pixel(model, threads):
    before = torch.get_num_threads()
    found = accumulate_counts(model, rows(7), EVERYTHING, threads)
    valid = sum(int((row["mask"] != 255).sum()) for row in rows(7))
    assert found.confusion.sum() == found.bins[:, 0].sum() == valid
    assert alike(found, accumulate_counts(model, rows(7), EVERYTHING, 1))
    assert torch.get_num_threads() == before


def test_any_sharding_and_order_adds_up_to_the_same(model):
    whole = accumulate_counts(model, rows(6), EVERYTHING, 1)
    total = Counts.zeros(EVERYTHING)
    for part in ([5, 1], [3], [], [0, 4, 2]):
        some = list(rows(6))
        total.merge(accumulate_counts(model, [some[index] for index in part], EVERYTHING, 1))
    assert alike(total, whole)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_what_is_counted_is_what_the_metrics_say_of_each_image(model):
    found = accumulate_counts(model, rows(3), EVERYTHING, 1)
    expected = Counts.zeros(EVERYTHING)
    for row in rows(3):
        mask = row["mask"][0]
        ids, sure = (one[0] for one in segment_with_confidence(model, row["image"], tuple(mask.shape)))
        matrix = confusion_matrix(ids, mask, 3, 255).numpy()
        assert np.array_equal(found.images[int(row["row"])].dense(3), class_counts(matrix))
        expected.confusion += matrix
        expected.bins += calibration_bins(ids, sure, mask, 255).numpy()
        for width in (1, 3):
            expected.boundary[width] += boundary_counts(ids, mask, 3, 255, width).numpy()
        expected.trimap[2] += trimap_counts(ids, mask, 3, 255, 2).numpy()
    expected.images = found.images
    assert alike(found, expected)


def test_an_image_without_a_counted_pixel_adds_nothing(model):
    empty = next(rows(1)) | {"mask": torch.full((1, 40, 60), 255, dtype=torch.uint8)}
    found = accumulate_counts(model, [empty], EVERYTHING, 1)
    assert not found.confusion.any()
    assert len(found.images[10].classes) == 0


def test_the_mode_is_heeded(model):
    looked = accumulate_counts(
        model, rows(2), CountSpec(3, 255), 1, InferenceConfig(crop=32, stride=16, window_batch=2, flip=True)
    )
    assert not np.array_equal(looked.confusion, accumulate_counts(model, rows(2), CountSpec(3, 255), 1).confusion)
    assert looked.images == {}


def test_an_error_in_a_row_is_raised_and_not_lost(model):
    def broken():
        yield from rows(2)
        raise RuntimeError("row three")

    with pytest.raises(RuntimeError, match="row three"):
        accumulate_counts(model, broken(), CountSpec(3, 255), 2)
