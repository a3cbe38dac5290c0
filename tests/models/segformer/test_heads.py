"""Folded heads, in strips and whole: against the heads as published, in double precision."""

import pytest
import torch
from torch import nn

from segray.models.segformer import tiling
from segray.models.segformer.heads import MmsegHead, SegFormerHead
from segray.models.segformer.model import build_segformer

DIMS = (8, 16, 24, 32)
HEADS = {"official": SegFormerHead, "mmseg": MmsegHead}


@pytest.fixture(params=["official", "mmseg"])
def head(request) -> nn.Module:
    made = HEADS[request.param](DIMS, 16, 5, dropout=0.0).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return made


@pytest.fixture
def maps() -> list[torch.Tensor]:
    sizes = [(25, 33), (13, 17), (7, 9), (4, 5)]
    return [torch.randn(2, dim, *size, dtype=torch.float64) for dim, size in zip(DIMS, sizes, strict=True)]


def results(logits, head, maps):
    """Returns logits, gradients of all inputs and parameters, and the running moments afterwards."""
    weight = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    grads = torch.autograd.grad((logits * weight).sum(), [*maps, *head.parameters()])
    return [logits.detach(), *grads, *(buffer.double().clone() for buffer in head.buffers())]


@pytest.mark.parametrize("strip_bytes", [1, 3 * 33 * 16 * 8, 1 << 30])
@pytest.mark.parametrize("training", [True, False])
def test_folded_and_in_strips_equals_published(head, maps, unfolded, training, strip_bytes, monkeypatch):
    monkeypatch.setattr(tiling, "TILE_BYTES", strip_bytes)
    maps = [level.requires_grad_() for level in maps]
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.train(training)
    ours = results(head(maps), head, maps)
    head.load_state_dict(before)
    expected = results(unfolded(head, maps), head, maps)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strip_bytes", [1, 3 * 33 * 16 * 8, 1 << 30])
def test_inference_in_strips_equals_published(head, maps, unfolded, strip_bytes, monkeypatch):
    monkeypatch.setattr(tiling, "TILE_BYTES", strip_bytes)
    head.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(maps), unfolded(head, maps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_plain_steps_of_compilers_and_gpus_equal_the_strips(head, maps, training, monkeypatch):
    maps = [level.requires_grad_() for level in maps]
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.train(training)
    in_strips = results(head(maps), head, maps)
    head.load_state_dict(before)
    monkeypatch.setattr("segray.models.segformer.fused_head.should_tile", lambda tensor: False)
    for mine, theirs in zip(results(head(maps), head, maps), in_strips, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_in_training_are_the_numeric_ones():
    head = SegFormerHead((2, 3), 4, 2, dropout=0.0).double()
    maps = [torch.randn(2, dim, *size, dtype=torch.float64) for dim, size in (((2), (5, 4)), ((3), (3, 2)))]
    assert torch.autograd.gradcheck(
        lambda *levels: head(levels), [level.requires_grad_() for level in maps], atol=1e-6, rtol=1e-4
    )


def test_dropout_drops_whole_channels_of_an_image_before_the_classifier(maps):
    head = SegFormerHead(DIMS, 1000, 1, dropout=0.25).double().train()
    nn.init.ones_(head.classifier.weight)
    nn.init.zeros_(head.bn.weight)
    nn.init.ones_(head.bn.bias)
    # Every channel is 1 at every pixel, so a logit is the sum of the kept channels' 1 / 0.75.
    logits = head(maps)
    assert (logits - logits[..., :1, :1]).abs().max() < 1e-9
    first, second = (logits[:, 0, 0, 0] * 0.75).round().tolist()
    assert first != second
    assert 700 < first < 800
    assert 700 < second < 800
    assert head.eval()(maps)[0, 0, 0, 0] != first


def test_a_head_without_dropout_is_the_same_twice_in_training(maps):
    head = SegFormerHead(DIMS, 16, 3, dropout=0.0).double().train()
    assert torch.equal(head(maps), head(maps))


def test_widths_are_the_published_ones():
    assert build_segformer("b0", 3).head.fuse.out_channels == 256
    assert build_segformer("b2", 3).head.fuse.out_channels == 768
    assert build_segformer("b2", 3, head="mmseg").head.fuse.out_channels == 256
