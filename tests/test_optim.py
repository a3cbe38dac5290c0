"""The published optimiser: every parameter in one group, rates by the closed form."""

import pytest
import torch

from segray.config import OptimConfig
from segray.model import build
from segray.optim import adamw, lr_factor, parameter_groups, set_lr

PUBLISHED = OptimConfig()


@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_every_parameter_stands_in_one_group_with_its_rate_and_decay(variant):
    model = build(variant, 19)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, PUBLISHED)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["peak_lr"] == pytest.approx(6e-4 if name.startswith("head.") else 6e-5)
            assert group["weight_decay"] == (0.0 if "norm" in name else 0.01), name
    layer_norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    undecayed = sum(len(group["params"]) for group in groups if group["weight_decay"] == 0)
    assert undecayed == 2 * len(layer_norms)


def test_frozen_parameters_are_left_out():
    model = build("b0", 5)
    model.encoder.requires_grad_(False)
    assert all(group["peak_lr"] == pytest.approx(6e-4) for group in parameter_groups(model, PUBLISHED))


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 6e-5 * 1e-6),
        (750, 6e-5 * (1 - 750 / 160000) * (1e-6 + (1 - 1e-6) * 0.5)),
        (1500, 6e-5 * (1 - 1500 / 160000)),
        (80000, 3e-5),
        (160000, 0.0),
    ],
)
def test_the_rate_follows_warm_up_and_poly(step, rate):
    model = build("b0", 3)
    optimiser = adamw(model, PUBLISHED)
    set_lr(optimiser, lr_factor(step, PUBLISHED, 160_000))
    rates = {group["peak_lr"]: group["lr"] for group in optimiser.param_groups}
    assert rates[PUBLISHED.lr] == pytest.approx(rate, rel=1e-9, abs=1e-15)
    assert rates[PUBLISHED.lr * 10] == pytest.approx(10 * rate, rel=1e-9, abs=1e-15)
