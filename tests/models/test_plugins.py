"""Encoders and heads of the user's own: the documented example runs, and broken promises are named."""

import re
import sys
from pathlib import Path

import pytest
import torch

from segray.core.errors import ModelError
from segray.models.segformer.model import build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights

DOCUMENT = Path(__file__).parents[2] / "docs" / "plugins.md"
BROKEN = """
import torch
from torch import nn

number = 3
def no_module(drop_path): return 3
def other_arguments(rate): return nn.Identity()

class Encoder(nn.Module):
    dims, strides = (4, 8, 16, 32), (4, 8, 16, 32)
    def __init__(self, drop_path):
        super().__init__()
    def forward(self, image):
        B, _, H, W = image.shape
        return [torch.zeros(B, C, -(-H // s), -(-W // s)) for C, s in zip(self.dims, self.strides)]

class NoDims(nn.Module):
    def __init__(self, drop_path):
        super().__init__()
class OtherStrides(Encoder):
    strides = (2, 4, 8, 16)
class ThreeMaps(Encoder):
    def forward(self, image):
        return super().forward(image)[:3]
class OtherDims(Encoder):
    def forward(self, image):
        return [level[:, :2] for level in super().forward(image)]

class Head(nn.Module):
    def __init__(self, dims, strides, num_classes, dropout):
        super().__init__()
        self.num_classes = num_classes
    def forward(self, maps):
        return torch.zeros(len(maps[0]), self.num_classes, *maps[0].shape[2:])
class SmallLogits(Head):
    def forward(self, maps):
        return torch.zeros(len(maps[0]), self.num_classes, *maps[1].shape[2:])
class NoSeg(Head):
    def forward(self, maps):
        return {"logits": super().forward(maps)}
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Makes modules of the text that is given, importable for the time of the test."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_the_documented_example_prints_what_the_document_says(parts, capsys):
    module, script = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (promised,) = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    parts("my_parts", module)
    exec(compile(script, str(DOCUMENT), "exec"), {})
    assert capsys.readouterr().out == promised


def test_parts_of_ones_own_go_with_the_published_ones(parts, images):
    parts("own", BROKEN)
    assert build_segformer("b0", 3, encoder="own:Encoder")(images(1, 64, 96))["seg"].shape == (1, 3, 16, 24)
    assert build_segformer("b0", 3, head="own:Head")(images(1, 97, 131))["seg"].shape == (1, 3, 25, 33)


@pytest.mark.parametrize(
    ("setting", "reference", "message"),
    [
        ("encoder", "nowhere_at_all:Encoder", "which cannot be imported .*expected module:attribute"),
        ("encoder", "own:Nothing", "which cannot be imported"),
        ("encoder", "own:number", "a int; expected a class or a function"),
        ("encoder", "own:no_module", "returns a int; expected a torch.nn.Module"),
        ("encoder", "own:other_arguments", "does not accept the arguments drop_path"),
        ("encoder", "own:NoDims", "no attributes `dims` and `strides`"),
        ("encoder", "own:OtherStrides", r"strides \(2, 4, 8, 16\); expected \(4, 8, 16, 32\)"),
        (
            "encoder",
            "own:ThreeMaps",
            r"returns maps of shapes \[.*\] for a 64x96 image; expected .*according to its dims and strides",
        ),
        ("encoder", "own:OtherDims", r"\(1, 2, 16, 24\).*expected \[\(1, 4, 16, 24\)"),
        ("head", "own:SmallLogits", r"returns \(1, 3, 8, 12\); expected logits \(1, 3, 16, 24\)"),
        ("head", "own:NoSeg", 'returns NoneType; expected logits .* or a dict that contains them as "seg"'),
    ],
)
def test_a_broken_promise_is_named(setting, reference, message, parts):
    parts("own", BROKEN)
    with pytest.raises(ModelError, match=rf"model.{setting}.*{message}"):
        build_segformer("b0", 3, **{setting: reference})


def test_a_model_of_ones_own_parts_keeps_its_weights(parts, tmp_path, images):
    module, _ = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    parts("my_parts", module)
    made = [
        build_segformer("b0", 3, encoder="my_parts:ConvEncoder", head="my_parts:AuxiliaryHead").eval() for _ in range(2)
    ]
    load_pretrained(made[1], save_weights(made[0], tmp_path / "own.safetensors"))
    batch = images(1, 64, 64)
    assert torch.equal(made[0](batch)["seg"], made[1](batch)["seg"])
    with pytest.raises(ModelError, match="layout transformers does not support a ConvEncoder with a AuxiliaryHead"):
        save_weights(made[0], tmp_path / "t", "transformers")
