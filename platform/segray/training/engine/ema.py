"""Exponential moving average of model weights."""

from copy import deepcopy

import torch
from torch import nn


class ModelEma:
    """Exponential moving average of the weights of a model.

    The average starts as a copy of the model. The decay of update n (0-based) is at most (1 + n) / (10 + n), so
    the first updates follow the model closely. The running moments of batch norms are also averaged, because they
    belong to the weights.

    Args:
        model: model to average.
        decay: fraction of the average that each update keeps.

    Attributes:
        model: averaged model, in eval mode.
        updates: number of updates made.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average with the current weights of the model."""
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        weight = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([average for average, _ in floats], [current for _, current in floats], weight)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)
        self.updates += 1
