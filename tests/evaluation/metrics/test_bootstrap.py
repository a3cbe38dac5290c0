"""The bootstrap: whole images, pairs, and intervals that hold the truth as often as they say."""

import numpy as np
import pytest

from segray.evaluation.metrics import bootstrap as module
from segray.evaluation.metrics.bootstrap import bootstrap, miou, percentile_interval
from segray.evaluation.metrics.scores import iou


def tables(random, images=30, classes=3):
    """Images of 100 pixels, of which each class has its share and a random part is right."""
    found = np.zeros((images, classes, 3), np.int64)
    for image in range(images):
        truth = random.integers(0, classes, 100)
        guess = np.where(random.random(100) < random.uniform(0.4, 1), truth, random.integers(0, classes, 100))
        for one in range(classes):
            found[image, one] = ((truth == one) & (guess == one)).sum(), (truth == one).sum(), (guess == one).sum()
    return found


def test_a_draw_is_the_statistic_of_images_drawn_with_replacement(monkeypatch):
    found = tables(np.random.default_rng(0), images=4)
    monkeypatch.setattr(module, "RESAMPLE_BATCH", 12)  # three draws at a time
    values = bootstrap(found, miou, num_resamples=10, seed=3)
    random = np.random.default_rng(3)
    for value in values:
        times = random.multinomial(4, [0.25] * 4)
        assert value == pytest.approx(float(miou(np.repeat(found, times, axis=0).sum(0))))


def test_the_same_seed_draws_the_same_images_so_that_models_are_compared_in_pairs():
    found = tables(np.random.default_rng(0))
    better = found.copy()
    better[..., 0] = np.minimum(better[..., 0] + 1, np.minimum(better[..., 1], better[..., 2]))
    differences = bootstrap(better, miou) - bootstrap(found, miou)
    assert (differences > 0).all()
    low, high = percentile_interval(differences)
    assert (
        0
        < low
        < high
        < percentile_interval(bootstrap(found, miou)).high - percentile_interval(bootstrap(found, miou)).low
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    world = tables(np.random.default_rng(1), images=4000)
    truth = float(miou(world.sum(0)))
    random = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        some = world[random.integers(0, len(world), 40)]
        low, high = percentile_interval(bootstrap(some, miou, num_resamples=300, seed=trial))
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99


def test_a_class_that_no_draw_holds_has_no_interval():
    found = tables(np.random.default_rng(0))
    found[:, 2] = 0
    values = bootstrap(found, iou, num_resamples=20)
    assert np.isnan(percentile_interval(values[:, 2]).low)
    assert not np.isnan(percentile_interval(values[:, 1]).low)
