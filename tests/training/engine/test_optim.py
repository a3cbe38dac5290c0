"""The published optimiser: every parameter in one group, rates by the closed form."""

import pytest
import torch

from segray.config import OptimConfig
from segray.core.errors import ModelError
from segray.models.segformer.model import SegFormer, build_segformer
from segray.training.engine.optim import build_optimizer, lr_multiplier, parameter_groups, set_lr

PUBLISHED = OptimConfig()


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5"])
def test_every_parameter_stands_in_one_group_with_its_rate_and_decay(variant):
    with torch.device("meta"):
        model = build_segformer(variant, 19, aux_head=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, PUBLISHED)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["peak_lr"] == pytest.approx(6e-4 if name.startswith(("head.", "aux_head.")) else 6e-5)
            assert group["weight_decay"] == (0.0 if "norm" in name else 0.01), name
    layer_norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    undecayed = sum(len(group["params"]) for group in groups if group["weight_decay"] == 0)
    assert undecayed == 2 * len(layer_norms)


def test_frozen_parameters_are_left_out():
    model = build_segformer("b0", 5)
    model.encoder.requires_grad_(False)
    assert all(group["peak_lr"] == pytest.approx(6e-4) for group in parameter_groups(model, PUBLISHED))


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 6e-5 * 1e-6),
        (1, 6e-5 * (1 - 1 / 160000) * (1e-6 + (1 - 1e-6) / 1500)),
        (750, 6e-5 * (1 - 750 / 160000) * (1e-6 + (1 - 1e-6) * 0.5)),
        (1500, 6e-5 * (1 - 1500 / 160000)),
        (80000, 3e-5),
        (160000, 0.0),
    ],
)
def test_the_rate_follows_warm_up_and_poly(step, rate):
    model = build_segformer("b0", 3)
    optimiser = build_optimizer(model, PUBLISHED)
    set_lr(optimiser, lr_multiplier(step, PUBLISHED, 160_000))
    rates = {group["peak_lr"]: group["lr"] for group in optimiser.param_groups}
    assert rates[PUBLISHED.lr] == pytest.approx(rate, rel=1e-9, abs=1e-15)
    assert rates[PUBLISHED.lr * 10] == pytest.approx(10 * rate, rel=1e-9, abs=1e-15)


def test_cosine_is_transformers():
    schedule = pytest.importorskip("transformers").get_cosine_schedule_with_warmup
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = schedule(optimiser, 30, 100)
    config = OptimConfig(schedule="cosine", warmup_steps=30, warmup_lr_ratio=0)
    for step in range(100):
        assert lr_multiplier(step, config, 100) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        optimiser.step()
        theirs.step()


def test_one_cycle_is_torchs():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1.0, total_steps=100, pct_start=0.31, div_factor=25, final_div_factor=40, cycle_momentum=False
    )
    config = OptimConfig(schedule="one_cycle", warmup_steps=30, warmup_lr_ratio=1 / 25, min_lr_ratio=1 / 1000)
    for step in range(100):
        assert lr_multiplier(step, config, 100) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        optimiser.step()
        if step < 99:
            theirs.step()


@pytest.mark.parametrize("schedule", ["poly", "cosine", "one_cycle"])
def test_every_schedule_ends_at_its_least_rate_and_needs_no_warm_up(schedule):
    config = OptimConfig(schedule=schedule, warmup_steps=0, min_lr_ratio=0.1)
    rates = [lr_multiplier(step, config, 50) for step in range(60)]
    assert rates[0] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert rates[50:] == [pytest.approx(0.1)] * 10


def test_layers_learn_the_slower_the_deeper_they_lie():
    model = build_segformer("b0", 5)
    assert model.num_layers == 9
    assert model.layer_index("encoder.stages.0.embedding.proj.weight") == 0
    assert model.layer_index("encoder.stages.0.blocks.1.norm1.weight") == 2
    assert model.layer_index("encoder.stages.2.embedding.proj.weight") == 5
    assert model.layer_index("encoder.stages.3.norm.weight") == 8
    rates = {
        id(parameter): group["peak_lr"]
        for group in parameter_groups(model, OptimConfig(lr=1.0, layer_decay=0.5))
        for parameter in group["params"]
    }
    assert rates[id(model.encoder.stages[0].embedding.proj.weight)] == 0.5**9
    assert rates[id(model.encoder.stages[3].norm.weight)] == 0.5
    assert rates[id(model.head.fuse.weight)] == 10


def test_layers_of_an_encoder_of_ones_own_have_no_known_order():
    with pytest.raises(ModelError, match=r"optim.layer_decay is 0.9; expected 1"):
        parameter_groups(SegFormer(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)), OptimConfig(layer_decay=0.9))
