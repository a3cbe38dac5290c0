"""Every layout that is written is read again, and by its owner's own code where that is at hand."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segray.core.errors import ModelError
from segray.models.segformer.model import build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights

LAYOUTS = ("segray", "nvlabs", "mmseg", "smp", "transformers")
WINDBLADE = "windblade_seg/weights/best_model.pth"


def head_of(layout: str) -> str:
    return "mmseg" if layout == "mmseg" else "official"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_is_loaded_with_the_same_logits(layout, lively, logits, target):
    model, other = lively("b0", 5, head=head_of(layout)), build_segformer("b0", 5, head=head_of(layout))
    report = load_pretrained(other, save_weights(model, target(layout), layout))
    assert (report.layout, report.part) == (layout, "model")
    assert set(report.loaded) == set(model.state_dict())
    assert (report.reinitialised, report.missing, report.unexpected) == ((), (), ())
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_number_of_classes_leaves_only_the_classifier_as_it_was(layout, lively, target):
    model, other = lively("b0", 5, head=head_of(layout)), build_segformer("b0", 7, head=head_of(layout))
    before = other.head.classifier.weight.clone()
    report = load_pretrained(other, save_weights(model, target(layout), layout))
    assert report.reinitialised == ("head.classifier.weight", "head.classifier.bias")
    assert "different number of classes, not loaded: head.classifier.weight" in str(report)
    assert torch.equal(other.head.classifier.weight, before)
    assert torch.equal(other.head.fuse.weight, model.head.fuse.weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoder_alone_is_loaded_from_a_whole_model(layout, lively, target):
    model, other = lively("b0", 5, head=head_of(layout)), build_segformer("b0", 5)
    before = other.head.fuse.weight.clone()
    report = load_pretrained(other, save_weights(model, target(layout), layout), part="encoder")
    assert report.part == "encoder"
    assert torch.equal(other.head.fuse.weight, before)
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(other.encoder.get_parameter(name), parameter), name


@pytest.mark.parametrize(("layout", "prefix"), [("nvlabs", "backbone."), ("mmseg", "backbone."), ("smp", "encoder.")])
def test_a_backbone_file_is_an_encoder_and_its_imagenet_classifier_is_left(layout, prefix, lively, target, logits):
    model = lively("b0", 5, head=head_of(layout))
    file = save_weights(model, target(layout), layout)
    state = torch.load(file, weights_only=True)
    state = state.get("state_dict", state)
    bare = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    torch.save(bare | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}, file)
    other = build_segformer("b0", 5, head=head_of(layout))
    report = load_pretrained(other, file, part="auto")
    assert report.part == "encoder"
    assert report.unexpected == ("head.weight", "head.bias")
    assert torch.equal(other.encoder.stages[3].norm.weight, model.encoder.stages[3].norm.weight)


def test_the_folder_of_transformers_opens_with_its_own_code_and_gives_the_same_logits(
    lively, logits, images, normalised, tmp_path
):
    transformers = pytest.importorskip("transformers")
    model = lively("b0", 3, norm_eps="transformers").eval()
    folder = save_weights(model, tmp_path / "t", "transformers", class_names=["sky", "road", "car"])
    theirs, report = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.id2label == {0: "sky", 1: "road", 2: "car"}
    batch = images(1, 64, 96)
    with torch.no_grad():
        ours = model(batch)["seg"]
        expected = theirs.eval()(pixel_values=normalised(model, batch)).logits
    assert (ours - expected).abs().max() < 1e-4 * (expected.max() - expected.min())
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == pytest.approx(
        [0.485, 0.456, 0.406], abs=1e-6
    )


@pytest.mark.parametrize("how", ["save_pretrained", "names of 5", "file of 5", "bin"])
def test_whatever_transformers_writes_is_loaded(how, lively, logits, peer, tmp_path):
    model, other = lively("b0", 3), build_segformer("b0", 3)
    theirs, source = peer(model), tmp_path / "theirs"
    source.mkdir()
    if how == "save_pretrained":
        theirs.save_pretrained(source)
    elif how == "bin":
        torch.save(theirs.state_dict(), source / "pytorch_model.bin")
    else:
        save_file(theirs.state_dict(), source / "model.safetensors")
    report = load_pretrained(other, source / "model.safetensors" if how == "file of 5" else source)
    assert report.layout.startswith("transformers")
    assert torch.equal(logits(other), logits(model))


def test_a_bare_segformer_model_of_transformers_is_an_encoder(lively, peer, tmp_path):
    model, other = lively("b0", 3), build_segformer("b0", 3)
    save_file(peer(model).segformer.state_dict(), tmp_path / "bare.safetensors")
    assert load_pretrained(other, tmp_path / "bare.safetensors", part="auto").part == "encoder"
    assert torch.equal(other.encoder.stages[2].norm.bias, model.encoder.stages[2].norm.bias)


def test_nvlabs_unused_layer_is_left_and_named(lively, target):
    file = save_weights(lively("b0", 5), target("nvlabs"), "nvlabs")
    content = torch.load(file, weights_only=True)
    content["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(5, 128, 1, 1)
    content["state_dict"]["decode_head.conv_seg.bias"] = torch.zeros(5)
    torch.save(content, file)
    report = load_pretrained(build_segformer("b0", 5), file)
    assert report.unexpected == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")


@pytest.mark.parametrize("wrapper", ["module.", "model.", "_orig_mod.module."])
def test_names_of_wrappers_are_taken_off(wrapper, lively, logits, tmp_path):
    model, other = lively("b0", 3), build_segformer("b0", 3)
    torch.save({"model": {wrapper + key: value for key, value in model.state_dict().items()}}, tmp_path / "w.pth")
    load_pretrained(other, tmp_path / "w.pth")
    assert torch.equal(logits(other), logits(model))


def test_half_precision_files_are_loaded_into_float32(lively, tmp_path):
    model, other = lively("b0", 3), build_segformer("b0", 3)
    save_file({key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()},
              tmp_path / "half.safetensors")  # fmt: skip
    load_pretrained(other, tmp_path / "half.safetensors")
    assert other.head.fuse.weight.dtype == torch.float32
    torch.testing.assert_close(other.head.fuse.weight, model.head.fuse.weight, rtol=1e-3, atol=1e-4)


def test_saving_leaves_nothing_but_the_named_file(lively, target):
    for layout in ("segray", "nvlabs"):
        file = save_weights(lively("b0", 3), target(layout), layout)
        assert [found.name for found in file.parent.iterdir()] == [file.name]
    assert set(load_file(target("segray"))) == set(build_segformer("b0", 3).state_dict())


def test_a_layout_without_names_for_the_model_is_refused(target):
    with pytest.raises(ModelError, match=r"layout mmseg does not support a Encoder with a SegFormerHead"):
        save_weights(build_segformer("b0", 3), target("mmseg"), "mmseg")
    with pytest.raises(ModelError, match=r"layout is 'transformer'; .*did you mean 'transformers'"):
        save_weights(build_segformer("b0", 3), target("mmseg"), "transformer")
    with pytest.raises(ModelError, match=r"2 class names for 3 classes"):
        save_weights(build_segformer("b0", 3), target("transformers"), "transformers", class_names=["a", "b"])


def test_a_real_third_party_file_of_smp_is_loaded(tmp_path):
    """The wheel windblade_seg 0.1.0 holds one; it is fetched by hand and named by SEGRAY_WINDBLADE."""
    wheel = os.environ.get("SEGRAY_WINDBLADE")
    if wheel is None:
        pytest.skip("SEGRAY_WINDBLADE names no wheel of windblade_seg 0.1.0")
    shutil.unpack_archive(wheel, tmp_path, "zip")
    report = load_pretrained(build_segformer("b0", 1), Path(tmp_path) / WINDBLADE)
    assert (report.layout, report.part, len(report.loaded)) == ("smp", "model", 192)
