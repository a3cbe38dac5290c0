"""The contract of an architecture, and that the training's use of it equals the rules by parameter names."""

import re
from typing import get_args

import pytest
import torch
from torch import nn

from segray.config import ModelConfig, OptimConfig
from segray.config.data import CROP_MULTIPLE
from segray.config.eval import STRIDE_MULTIPLE
from segray.models.architecture import LayeredEncoder, SegmentationModel
from segray.models.cost import variants_by_cost
from segray.models.segformer.model import VARIANTS, SegFormer, build_segformer
from segray.training.engine.optim import parameter_groups

LAYER = re.compile(r"encoder\.stages\.(\d+)\.(?:(embedding|norm)|blocks\.(\d+))\.")


def layer_by_name(name, depths):
    match = LAYER.match(name)
    stage, part, block = int(match[1]), match[2], match[3]
    before = sum(depths[:stage])
    if part == "norm":
        return before + depths[stage]
    if part == "embedding":
        return before + 1 if stage else 0
    return before + int(block) + 1


def groups_by_name(model, config):
    """The parameter groups as earlier releases made them: by prefix, by `norm` in the name, and by a pattern."""
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if name.startswith(("head.", "aux_head.")):
            factor = config.head_lr_factor
        elif config.layer_decay != 1:
            depths = model.encoder.depths
            factor = float(config.layer_decay ** (sum(depths) + 1 - layer_by_name(name, depths)))
        groups.setdefault((factor, 0.0 if "norm" in name else config.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "peak_lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def assert_same_groups(groups, expected):
    assert len(groups) == len(expected)
    for group, other in zip(groups, expected, strict=True):
        assert group.keys() == other.keys()
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in other["params"]]
        assert (group["peak_lr"], group["weight_decay"]) == (other["peak_lr"], other["weight_decay"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", ["official", "mmseg"])
def test_the_parameter_groups_are_those_of_earlier_releases(variant, head):
    with torch.device("meta"):
        model = build_segformer(variant, 19, head=head, aux_head=True)
    for layer_decay in (1.0, 0.9, 0.65):
        config = OptimConfig(layer_decay=layer_decay)
        assert_same_groups(parameter_groups(model, config), groups_by_name(model, config))
    model.encoder.requires_grad_(False)
    assert_same_groups(parameter_groups(model, OptimConfig()), groups_by_name(model, OptimConfig()))


class ConvEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.conv = nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 1)


class OrderedConvEncoder(ConvEncoder):
    num_layers = 2

    def layer_index(self, name):
        return 0 if name.startswith("norm1.") else 1


def test_an_encoder_without_ordered_layers_has_the_groups_of_earlier_releases():
    model = SegFormer(ConvEncoder(), nn.Conv2d(4, 2, 1))
    assert model.num_layers is None
    assert_same_groups(parameter_groups(model, OptimConfig()), groups_by_name(model, OptimConfig()))


def test_an_encoder_of_ones_own_may_order_its_layers():
    model = SegFormer(OrderedConvEncoder(), nn.Conv2d(4, 2, 1))
    assert isinstance(model.encoder, LayeredEncoder)
    groups = parameter_groups(model, OptimConfig(lr=1.0, layer_decay=0.5))
    assert [(group["peak_lr"], group["weight_decay"]) for group in groups] == [(0.25, 0.0), (0.5, 0.01), (10.0, 0.01)]


def test_the_network_is_what_it_states():
    model = build_segformer("b0", 5, aux_head=True)
    assert isinstance(model, SegmentationModel)
    images = torch.zeros(2, 3, 3 * model.size_multiple, model.size_multiple + 1, dtype=torch.uint8)
    expected = [-(-side // model.output_stride) for side in images.shape[-2:]]
    assert list(model.eval()(images)["seg"].shape) == [2, 5, *expected]
    modules = dict(model.named_modules())
    assert all(modules[name].weight.shape[0] == 5 for name in model.classifiers)
    assert {id(parameter) for name, parameter in model.named_parameters() if model.in_encoder(name)} == {
        id(parameter) for parameter in model.encoder.parameters()
    }
    layers = {model.layer_index(name) for name, _ in model.named_parameters() if model.in_encoder(name)}
    assert layers == set(range(model.num_layers))


def test_the_settings_accept_the_sizes_of_the_network():
    assert SegFormer.size_multiple == CROP_MULTIPLE
    assert SegFormer.output_stride == STRIDE_MULTIPLE


def test_the_variants_are_ordered_by_cost():
    assert variants_by_cost() == ("b0", "b1", "b2", "b3", "b4", "b5")
    assert sorted(variants_by_cost()) == sorted(get_args(ModelConfig.model_fields["variant"].annotation))
