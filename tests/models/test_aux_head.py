"""The auxiliary head: there in training alone, and no hindrance to weights that lack it or models that do."""

import pytest
import torch

from segray.models.segformer.model import build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights


def test_it_speaks_in_training_alone(images):
    model = build_segformer("b0", 5, aux_head=True)
    outputs = model.train()(images(2, 64, 96))
    assert (outputs["seg"].shape, outputs["aux"].shape) == ((2, 5, 16, 24), (2, 5, 4, 6))
    assert set(model.eval()(images(2, 64, 96))) == {"seg"}
    outputs["aux"].sum().backward()
    assert model.encoder.stages[2].norm.weight.grad is not None
    assert model.encoder.stages[3].norm.weight.grad is None


@pytest.mark.parametrize("there", [True, False])
def test_weights_with_and_without_it_fit_either_way(tmp_path, there):
    source, target = build_segformer("b0", 5, aux_head=there), build_segformer("b0", 5, aux_head=not there)
    loaded = load_pretrained(target, save_weights(source, tmp_path / "model.safetensors"))
    assert any(name.startswith("aux_head.") for name in loaded.missing) == (not there)
    assert torch.equal(target.head.fuse.weight, source.head.fuse.weight)


def test_other_layouts_are_written_without_it(tmp_path):
    saved = torch.load(
        save_weights(build_segformer("b0", 5, aux_head=True), tmp_path / "x.pth", "nvlabs"), weights_only=True
    )
    assert not any("aux" in name for name in saved["state_dict"])
