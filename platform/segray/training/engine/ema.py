"""The exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import nn


class ModelEma:
    """A second model whose weights follow those of the first.

    It starts as a copy and follows fast at first: update n, from 0, keeps at most (1 + n) / (10 + n) of the average.
    Batch norms' running moments are averaged too: they belong to the weights.

    Args:
        model: what is followed.
        decay: share of the average that an update keeps.

    Attributes:
        model: the average, in eval mode.
        updates: made so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights."""
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        followed = [pair for pair in pairs if pair[0].is_floating_point()]
        share = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([mine for mine, _ in followed], [theirs for _, theirs in followed], share)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
        self.updates += 1
