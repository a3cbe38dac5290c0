"""Validation: a picture for people never ends a run."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segray import config
from segray.config.paths import preview_path
from segray.core import visualize
from segray.data.sources import demo
from segray.models.build import build_model
from segray.training.validation import _save_preview


@pytest.fixture
def state(tmp_path):
    settings, classes = config.build({}), demo.demo_classes()
    job = SimpleNamespace(config=settings, folder=tmp_path, manifest=SimpleNamespace(classes=classes))
    train_state = SimpleNamespace(eval_model=build_model(settings, classes).eval())
    progress = SimpleNamespace(step=7)
    return SimpleNamespace(job=job, train_state=train_state, device=torch.device("cpu"), progress=progress)


ROW = {"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "mask": torch.zeros(1, 40, 50, dtype=torch.uint8)}


def test_the_preview_is_written(state):
    _save_preview(state, [ROW])
    with Image.open(preview_path(state.job.folder, 7)) as preview:
        assert preview.format == "PNG"
        assert preview.width == len(visualize.COLUMNS) * visualize.WIDTH
        assert np.asarray(preview)[visualize.HEADER :].std() > 0  # the pictures below the titles


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("height 0"), MemoryError(), RuntimeError("CUDA")])
def test_an_error_of_the_preview_is_a_warning(state, monkeypatch, error):
    def fail(*_):
        raise error

    messages = []
    monkeypatch.setattr(visualize, "save_previews", fail)
    monkeypatch.setattr(
        logging.getLogger("segray.training.validation"), "warning", lambda text, *args: messages.append(text % args)
    )
    _save_preview(state, [ROW])
    (message,) = messages
    assert "the preview of step 7 cannot be written" in message
    assert type(error).__name__ in message
