"""Weights in every layout of one small model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segray.models.segformer.model import SegFormer

FILES = {"segray": "w.safetensors", "nvlabs": "w.pth", "mmseg": "w.pth", "smp": "w.pth", "transformers": "w"}


@pytest.fixture
def target(tmp_path: Path) -> Callable[[str], Path]:
    """Returns where a layout is saved."""
    return lambda layout: tmp_path / layout / FILES[layout]


@pytest.fixture
def logits(images) -> Callable[[SegFormer], Tensor]:
    """Returns a model's logits of one fixed image in eval."""
    batch = images(1, 64, 96)

    def of(model: SegFormer) -> Tensor:
        with torch.no_grad():
            return model.eval()(batch)["seg"]

    return of
