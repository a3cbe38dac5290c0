"""One path from image to mask, that of validation."""

import numpy as np
import pytest
import torch

from segray import checkpoint, config
from segray.classes import Classes
from segray.data.augment.sizes import fit_to_model
from segray.predict import Predictor, segment

CLASSES = Classes.named(["road", "car", "sky"])
CONFIG = config.build({"data.short_side": 64})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return checkpoint.build_model(CONFIG, CLASSES).eval()


def test_a_predictor_does_what_validation_does(model, tmp_path):
    meta = checkpoint.Meta(step=1, metrics={}, confusion=[], dataset_digest="", versions={})
    checkpoint.contents(model, {}, CONFIG, CLASSES, meta).write(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    mask = Predictor(tmp_path)(image)
    fitted = torch.from_numpy(fit_to_model(image, 64, 32)).permute(2, 0, 1)[None]
    assert (mask.shape, mask.dtype) == ((90, 131), np.uint8)
    assert np.array_equal(mask, segment(model, fitted, (90, 131))[0].numpy())
