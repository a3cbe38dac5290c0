"""Optimiser update: clipped, scaled or skipped."""

import pytest
import torch
from torch import nn

from segray.training.engine.optimizer_step import GROWTH_INTERVAL, MIN_SCALE, OptimizerStepper, batch_norm_buffers

OPTIMISERS = {
    "fused": lambda model: torch.optim.AdamW(
        [{"params": list(model.parameters()), "peak_lr": 0.1}], lr=0.1, fused=True
    ),
    "plain": lambda model: torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.1}], lr=0.1),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(updater, model, factor=1.0, inputs=None):
    updater.start(1.0)
    updater.backward(model(torch.ones(4, 3) if inputs is None else inputs).square().sum() * factor)
    return updater.apply()


def weights(model):
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_the_gradient_is_clipped_as_torch_clips_it(model, kind, clip):
    theirs = nn.Linear(3, 2)
    theirs.load_state_dict(model.state_dict())
    updater = OptimizerStepper(OPTIMISERS[kind](model), max_norm=clip)
    optimiser = OPTIMISERS[kind](theirs)
    for _ in range(3):
        norm = step(updater, model).norm
        optimiser.zero_grad()
        theirs(torch.ones(4, 3)).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        optimiser.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-4)  # torch adds 1e-6 to the norm
    assert torch.allclose(weights(model), weights(theirs), atol=1e-5)


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_non_finite_update_is_skipped(model, kind, spoilt):
    updater = OptimizerStepper(OPTIMISERS[kind](model))
    assert step(updater, model).finite
    before = weights(model)
    updated = step(updater, model, inputs=torch.tensor([[1.0, spoilt, 1.0]]))
    assert not updated.finite
    assert torch.equal(weights(model), before)
    assert step(updater, model).finite
    assert weights(model).isfinite().all()
    assert not torch.equal(weights(model), before)


def test_a_non_finite_loss_makes_finite_gradients_non_finite(model):
    """On one rank of several, the others' average must know of it."""
    updater = OptimizerStepper(OPTIMISERS["fused"](model))
    updater.start(1.0)
    updater.backward(model(torch.ones(1, 3)).sum() + torch.tensor(float("inf")))
    assert not updater.apply().finite


def test_a_skipped_step_does_not_change_the_state_of_adam(model):
    """Moments and bias correction go on as if it had not been."""
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    pair = [OptimizerStepper(OPTIMISERS["fused"](one)) for one in (model, twin)]
    for _ in range(2):
        step(pair[0], model)
        step(pair[1], twin)
        step(pair[1], twin, factor=float("nan"))
    assert torch.equal(weights(model), weights(twin))


def test_running_moments_are_restored_if_the_update_is_skipped():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    updater = OptimizerStepper(OPTIMISERS["plain"](model), buffers=batch_norm_buffers(model))
    step(updater, model)
    before = [buffer.clone() for buffer in model.buffers()]
    step(updater, model, inputs=torch.full((4, 3), float("nan")))
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
    step(updater, model)
    assert model[0].num_batches_tracked == 2


def test_the_loss_scale_changes_no_update_and_adapts_to_overflows(model):
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    scaled, plain = (
        OptimizerStepper(OPTIMISERS["fused"](model), scaled=True, max_norm=1.0),
        OptimizerStepper(OPTIMISERS["fused"](twin), max_norm=1.0),
    )
    for _ in range(3):
        norms = step(scaled, model).norm, step(plain, twin).norm
        assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-5)
    assert torch.allclose(weights(model), weights(twin), atol=1e-6)
    assert scaled.state_dict()["scale"] == 2**16
    step(scaled, model, factor=float("inf"))
    assert (scaled.state_dict()["scale"], scaled.state_dict()["clean"]) == (2**15, 0)
    scaled.load_state_dict({"scale": torch.tensor(MIN_SCALE), "clean": torch.tensor(0)})
    step(scaled, model, factor=float("inf"))
    assert scaled.state_dict()["scale"] == MIN_SCALE
    scaled.load_state_dict({"scale": torch.tensor(8.0), "clean": torch.tensor(GROWTH_INTERVAL - 1)})
    step(scaled, model)
    assert (scaled.state_dict()["scale"], scaled.state_dict()["clean"]) == (16, 0)
