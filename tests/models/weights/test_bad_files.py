"""Files that cannot be loaded: each is refused with what was found and expected, the model untouched."""

import pickle
from pathlib import Path

import pytest
import torch

from segray.core.errors import CheckpointError, ModelError
from segray.models.segformer.model import build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights


@pytest.fixture
def model():
    return build_segformer("b0", 3)


@pytest.fixture(autouse=True)
def untouched(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    yield
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def saved(model, path: Path, change=lambda state: state) -> Path:
    torch.save(change(dict(model.state_dict())), path)
    return path


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_missing_file(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pth do not exist; expected a .safetensors or .pth file"):
        load_pretrained(model, tmp_path / "nothing.pth")


def test_an_empty_folder(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"contains no weights; expected one of the files model.safetensors"):
        load_pretrained(model, tmp_path)


@pytest.mark.parametrize(
    ("layout", "name"), [("segray", "b1.safetensors"), ("nvlabs", "b1.pth"), ("transformers", "b1")]
)
def test_another_variant(model, layout, name, tmp_path):
    target = save_weights(build_segformer("b1", 3), tmp_path / name, layout)
    with pytest.raises(CheckpointError, match=r"belong to a b1; the model is a b0"):
        load_pretrained(model, target)


def test_another_variant_of_the_same_widths(tmp_path):
    with torch.device("meta"):
        b3, b2 = build_segformer("b3", 3), build_segformer("b2", 3)
    # One number a tensor, repeated: the shapes alone matter, and the file stays small.
    torch.save(
        {key: torch.zeros(()).expand(value.shape) for key, value in b3.state_dict().items()}, tmp_path / "b3.pth"
    )
    with pytest.raises(CheckpointError, match=r"belong to a b3; the model is a b2"):
        load_pretrained(b2, tmp_path / "b3.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_truncated_file(model, name, tmp_path):
    whole = (
        saved(model, tmp_path / "w.pth") if name.endswith("pth") else save_weights(model, tmp_path / "w.safetensors")
    )
    (tmp_path / name).write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=rf"{name} are (damaged|not a complete safetensors file)"):
        load_pretrained(model, tmp_path / name)


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
def test_an_html_page(model, name, tmp_path):
    (tmp_path / name).write_text("<!DOCTYPE html>\n<html><body>404: not found</body></html>")
    with pytest.raises(CheckpointError, match=r"text that starts with '<!doctype html>"):
        load_pretrained(model, tmp_path / name)


def test_an_empty_file(model, tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match=r"empty.pth are damaged or not a PyTorch file \(.*0 bytes\)"):
        load_pretrained(model, tmp_path / "empty.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(model, legacy, tmp_path):
    content = dict(model.state_dict()) | {"epoch": Malicious(tmp_path / "ran")}
    if legacy:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"contain more than tensors and plain values"):
        load_pretrained(model, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_tensors(model, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"contain no tensors"):
        load_pretrained(model, tmp_path / "w.pth")


def test_one_tensor_of_another_shape(model, tmp_path):
    key = "encoder.stages.1.blocks.0.attn.q.weight"
    file = saved(model, tmp_path / "w.pth", lambda state: state | {key: torch.zeros(64, 65)})
    with pytest.raises(
        CheckpointError, match=rf"1 tensors with other shapes:\n  {key}: found \(64, 65\), expected \(64, 64\)"
    ):
        load_pretrained(model, file)


def test_a_tensor_that_lacks_is_an_error_unless_named(tmp_path):
    model, key = build_segformer("b0", 3), "encoder.stages.0.norm.bias"
    file = saved(model, tmp_path / "w.pth", lambda state: {k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match=rf"lack 1 tensors .*allow_missing to load without them:\n  {key}"):
        load_pretrained(model, file)
    assert load_pretrained(model, file, allow_missing=["encoder.*.norm.bias"]).missing == (key,)


def test_a_tensor_too_many_is_an_error_unless_named(tmp_path):
    model = build_segformer("b0", 3)
    file = saved(model, tmp_path / "w.pth", lambda state: state | {"aux.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"contain 1 tensors .*allow_unexpected to ignore them:\n  aux.weight"):
        load_pretrained(model, file)
    assert load_pretrained(model, file, allow_unexpected=["aux.*"]).unexpected == ("aux.weight",)


def test_names_of_nobody(model, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        CheckpointError, match=r"an unknown layout \(conv1.weight ...\); expected one of the layouts segray, nvlabs"
    ):
        load_pretrained(model, tmp_path / "resnet.pth")


def test_an_encoder_where_a_whole_model_is_expected(model, tmp_path):
    encoder = {key: value for key, value in model.state_dict().items() if key.startswith("encoder.")}
    torch.save(encoder, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"contain an encoder but no decode head; load part='encoder'"):
        load_pretrained(model, tmp_path / "w.pth")


def test_the_head_of_another_layout(model, tmp_path):
    file = save_weights(build_segformer("b0", 3, head="mmseg"), tmp_path / "w.pth", "mmseg")
    with pytest.raises(
        ModelError, match=r"have the head of mmseg; the model has a SegFormerHead; build the model with head='mmseg'"
    ):
        load_pretrained(model, file)


def test_a_part_that_does_not_exist(model, tmp_path):
    with pytest.raises(ModelError, match=r"part is 'encodr'; .*did you mean 'encoder'"):
        load_pretrained(model, tmp_path, part="encodr")
