"""Optimiser update with gradient clipping, float16 loss scaling and no update for values that are not finite.

With a fused optimiser, no function in this module waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from segray.training.engine.optim import set_lr

INITIAL_SCALE = 2.0**16
MIN_SCALE = 2.0**-16  # lower bound for a loss that is never finite; a scale of 0 could not grow again
GROWTH_INTERVAL = 2000  # finite steps after which the scale doubles, as in torch's GradScaler


class UpdateResult(NamedTuple):
    """Result of an update.

    Attributes:
        norm: () norm of the gradient before clipping.
        finite: () bool, `True` if the update was made.
    """

    norm: Tensor
    finite: Tensor


class OptimizerStepper:
    """Updates parameters from gradients.

    Args:
        optimiser: optimiser of parameters on one device.
        max_norm: maximum norm of the gradient; `None` disables clipping.
        scaled: whether the loss is scaled to avoid underflow of float16 gradients.
        buffers: buffers that are restored if the update is skipped, such as the running moments of batch norms.
    """

    def __init__(
        self,
        optimiser: Optimizer,
        *,
        max_norm: float | None = None,
        scaled: bool = False,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self._optimiser, self._max_norm, self._scaled, self._buffers = optimiser, max_norm, scaled, buffers
        self._saved_buffers: list[Tensor] = []
        device = optimiser.param_groups[0]["params"][0].device
        self._scale = torch.tensor(INITIAL_SCALE if scaled else 1.0, device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the loss scale and the number of finite steps since its last change."""
        return {"scale": self._scale, "clean": self._finite_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the state returned by `state_dict`."""
        self._scale.copy_(state["scale"])
        self._finite_steps.copy_(state["clean"])

    def start(self, lr_factor: float) -> None:
        """Sets the learning rates of the next step and clears the previous gradients."""
        set_lr(self._optimiser, lr_factor)
        self._optimiser.zero_grad(set_to_none=True)
        self._saved_buffers = [buffer.clone() for buffer in self._buffers]

    def backward(self, total: Tensor) -> None:
        """Adds the gradients of a loss.

        If the loss is not finite, its gradients become NaN on every rank that takes part in the average.
        """
        total.backward(torch.where(total.detach().isfinite(), self._scale, torch.nan).to(total.dtype))

    def apply(self) -> UpdateResult:
        """Updates the parameters with the accumulated gradients, unless a gradient is not finite."""
        grads = [
            parameter.grad
            for group in self._optimiser.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = get_total_norm(grads) / self._scale
        finite = norm.isfinite()
        divisor = self._scale
        if self._max_norm is not None:
            divisor = divisor * (norm / self._max_norm).clamp_min(1)
        _apply(self._optimiser, grads, divisor.float(), finite)
        if self._scaled:
            self._update_scale(finite)
        for buffer, saved in zip(self._buffers, self._saved_buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, saved))
        return UpdateResult(norm, finite)

    def _update_scale(self, finite: Tensor) -> None:
        self._finite_steps.copy_(torch.where(finite, self._finite_steps + 1, 0))
        is_due = self._finite_steps >= GROWTH_INTERVAL
        self._scale.mul_(torch.where(finite, torch.where(is_due, 2.0, 1.0), 0.5)).clamp_(min=MIN_SCALE)
        self._finite_steps.masked_fill_(is_due, 0)


def _apply(optimiser: Optimizer, grads: list[Tensor], divisor: Tensor, finite: Tensor) -> None:
    """Makes the update with gradients divided by `divisor`, or skips it if `finite` is false.

    A fused optimiser does both itself, controlled by the two attributes that torch's GradScaler sets.
    """
    if getattr(optimiser, "_step_supports_amp_scaling", False):
        fused: object = optimiser
        fused.grad_scale, fused.found_inf = divisor, (~finite).float()  # type: ignore[attr-defined]
        optimiser.step()
        del fused.grad_scale, fused.found_inf  # type: ignore[attr-defined]
    elif finite:
        torch._foreach_div_(grads, divisor)
        optimiser.step()


def batch_norm_buffers(model: nn.Module) -> list[Tensor]:
    """Returns the buffers of the batch norms of a model, which are the only buffers that training changes."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]
