"""The encoder: drop path, epsilons, start values, checkpointing."""

import itertools
import math

import pytest
import torch
from torch import nn

from segray.models.segformer.encoder import Encoder
from segray.models.segformer.model import build_segformer


def blocks(encoder: Encoder) -> list[nn.Module]:
    return [block for stage in encoder.stages for block in stage.blocks]


def test_drop_path_rises_linearly_from_0_over_all_blocks():
    rates = [block.drop_path for block in blocks(build_segformer("b2", 3, drop_path=0.3).encoder)]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.3)
    steps = [after - before for before, after in itertools.pairwise(rates)]
    assert steps == pytest.approx([0.3 / 15] * 15)


def test_drop_path_drops_a_branch_of_whole_images_and_keeps_its_mean():
    block = blocks(build_segformer("b0", 3, drop_path=0.5).encoder)[-1].train()
    tokens, branch = torch.zeros(4000, 1, 1, 2), torch.ones(4000, 1, 1, 2)
    added = block._add(tokens, branch)
    assert set(added.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(added[..., 0], added[..., 1])
    assert added.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(block.eval()._add(tokens, branch), branch)


@pytest.mark.parametrize(
    ("source", "block_eps", "conv_eps"),
    [("official", 1e-6, 1e-5), ("mmseg", 1e-6, 1e-6), ("transformers", 1e-5, 1e-5)],
)
def test_epsilons_are_those_of_the_source(source, block_eps, conv_eps):
    for name, module in build_segformer("b0", 3, norm_eps=source).named_modules():
        if isinstance(module, nn.LayerNorm):
            after_conv = name.endswith(("embedding.norm", "attn.norm"))
            assert module.eps == (conv_eps if after_conv else block_eps), name


def test_start_values_are_the_published_ones():
    for name, module in build_segformer("b0", 19).named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 4000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
        if isinstance(module, nn.Conv2d) and name != "head.classifier" and module.weight.numel() > 4000:
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            assert module.bias.abs().max() == 0, name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_checkpointing_changes_memory_and_nothing_else(images, kept_bytes):
    batch, results = images(2, 64, 96), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = build_segformer("b0", 3, drop_path=0.5, activation_checkpointing=checkpointing).train()
        with kept_bytes() as kept:
            logits = model(batch)["seg"]
        logits.square().sum().backward()
        results.append((sum(kept.values()), logits, [parameter.grad for parameter in model.parameters()]))
    (plain_kept, plain, plain_grads), (kept, again, grads) = results
    assert kept < 0.7 * plain_kept
    assert torch.equal(plain, again)
    for mine, other in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(mine, other)
