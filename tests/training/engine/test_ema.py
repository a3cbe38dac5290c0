"""The average follows the weights by the formula, batch norms included."""

import pytest
import torch
from torch import nn

from segray.training.engine.ema import ModelEma


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_the_average_follows_by_the_formula(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEma(model, decay)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for update in range(4):
        model(torch.randn(8, 2))
        with torch.no_grad():
            model[0].weight.add_(1.0)
        ema.update(model)
        kept = min(decay, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    for name, value in ema.model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 4
        else:
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
