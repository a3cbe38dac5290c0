"""One path from image to mask, the same counts on any number of threads."""

import numpy as np
import pytest
import torch

from segray import checkpoint, config
from segray.classes import Classes
from segray.data.augment.sizes import fit_to_model
from segray.metrics import confusion
from segray.predict import Predictor, count, segment

CLASSES = Classes.named(["road", "car", "sky"])
CONFIG = config.build({"data.short_side": 64})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return checkpoint.build_model(CONFIG, CLASSES).eval()


def rows(number):
    random = np.random.default_rng(0)
    for index in range(number):
        height, width = 40 + index, 60
        yield {
            "image": torch.from_numpy(random.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)),
            "mask": torch.from_numpy(random.choice([0, 1, 2, 255], (1, height, width)).astype(np.uint8)),
        }


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_counts_do_not_depend_on_threads_and_hold_every_pixel(model, threads):
    before = torch.get_num_threads()
    found = count(model, rows(7), 3, 255, threads)
    expected = sum(
        confusion(segment(model, row["image"], tuple(row["mask"].shape[1:])), row["mask"], 3, 255) for row in rows(7)
    )
    assert found.sum() == sum(int((row["mask"] != 255).sum()) for row in rows(7))
    assert (found - expected).abs().sum() <= 2  # forward passes on other numbers of threads differ in near-ties
    assert torch.equal(found, count(model, rows(7), 3, 255, 1))
    assert torch.get_num_threads() == before


def test_an_error_in_a_row_is_raised_and_not_lost(model):
    def broken():
        yield from rows(2)
        raise RuntimeError("row three")

    with pytest.raises(RuntimeError, match="row three"):
        count(model, broken(), 3, 255, 2)


def test_a_predictor_does_what_validation_does(model, tmp_path):
    meta = checkpoint.Meta(step=1, metrics={}, confusion=[], dataset_digest="", versions={})
    checkpoint.contents(model, {}, CONFIG, CLASSES, meta).write(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    mask = Predictor(tmp_path)(image)
    fitted = torch.from_numpy(fit_to_model(image, 64, 32)).permute(2, 0, 1)[None]
    assert (mask.shape, mask.dtype) == ((90, 131), np.uint8)
    assert np.array_equal(mask, segment(model, fitted, (90, 131))[0].numpy())
