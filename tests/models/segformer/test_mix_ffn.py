"""The feed-forward layer in strips: against its plain steps, in double precision."""

import pytest
import torch

from segray.models.segformer import mix_ffn, tiling
from segray.models.segformer.mix_ffn import MixFFN


@pytest.fixture
def layer() -> MixFFN:
    made = MixFFN(6, 24).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def plain(layer, tokens):
    mixed = layer.mix(layer.fc1(tokens).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return layer.fc2(torch.nn.functional.gelu(mixed))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 9), (16, 3)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_strips_equal_the_plain_steps(layer, size, rows, monkeypatch):
    monkeypatch.setattr(tiling, "TILE_BYTES", rows * size[1] * 24 * 8)
    monkeypatch.setattr(mix_ffn, "MIN_TILES", 1)
    tokens = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    inputs, weight = [tokens, *layer.parameters()], torch.randn_like(tokens)
    expected = plain(layer, tokens)
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad((layer(tokens) * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_a_large_map_is_not_kept_for_the_backward_pass(layer, kept_bytes, monkeypatch):
    tokens = torch.randn(1, 64, 64, 6, dtype=torch.float64, requires_grad=True)
    hidden_bytes = 64 * 64 * 24 * 8
    with kept_bytes() as small:
        layer(tokens)
    monkeypatch.setattr(tiling, "TILE_BYTES", hidden_bytes // 8)
    with kept_bytes() as large:
        layer(tokens)
    assert sum(small.values()) > 2 * hidden_bytes
    assert sum(large.values()) < hidden_bytes
