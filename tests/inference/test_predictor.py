"""One path from image to mask, that of validation."""

import numpy as np
import pytest
import torch

from segray import config
from segray.core.classes import Classes
from segray.data.preprocess import preprocess
from segray.inference.predictor import Predictor
from segray.inference.segment import segment
from segray.models import checkpoint
from segray.models.build import build_model

CLASSES = Classes.from_names(["road", "car", "sky"])
CONFIG = config.build({"data.short_side": 64})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(CONFIG, CLASSES).eval()


def test_a_predictor_does_what_validation_does(model, tmp_path):
    meta = checkpoint.Meta(step=1, metrics={}, confusion=[], dataset_digest="", versions={})
    checkpoint.snapshot(model, {}, CONFIG, CLASSES, meta).write(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    mask = Predictor(tmp_path)(image)
    fitted = preprocess(image, 64, 32)
    assert (mask.shape, mask.dtype) == ((90, 131), np.uint8)
    assert np.array_equal(mask, segment(model, fitted, (90, 131))[0].numpy())
