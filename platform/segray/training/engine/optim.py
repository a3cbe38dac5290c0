"""Published SegFormer optimiser and schedule: AdamW, tenfold learning rate for the head, no decay of layer norms."""

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from segray.config import OptimConfig
from segray.core.errors import ModelError
from segray.models.architecture import SegmentationModel


def build_optimizer(model: SegmentationModel, config: OptimConfig) -> AdamW:
    """Returns AdamW over the parameter groups of `model`, with the initial learning rate `optim.lr`."""
    groups = parameter_groups(model, config)
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def parameter_groups(model: SegmentationModel, config: OptimConfig) -> list[dict[str, object]]:
    """Returns the parameter groups for AdamW. Every trainable parameter is in exactly one group.

    The schedule scales the `peak_lr` of each group. The learning rate of the heads is `head_lr_factor` times that of
    the encoder. That of an encoder layer is multiplied by `layer_decay` for every layer between it and the heads.

    Raises:
        ModelError: `optim.layer_decay` is not 1 and the layers of the encoder have no known order.
    """
    if config.layer_decay != 1 and model.num_layers is None:
        raise ModelError(
            f"optim.layer_decay is {config.layer_decay}; expected 1, because the encoder does not define an order of "
            "its layers (num_layers and layer_index, see docs/plugins.md)."
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = _lr_factor(name, model, config), config.weight_decay if model.has_weight_decay(name) else 0.0
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "peak_lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _lr_factor(name: str, model: SegmentationModel, config: OptimConfig) -> float:
    """Returns the factor of the peak learning rate of a parameter."""
    if not model.in_encoder(name):
        return config.head_lr_factor
    if config.layer_decay == 1:
        return 1.0
    assert model.num_layers is not None
    return float(config.layer_decay ** (model.num_layers - model.layer_index(name)))


def lr_multiplier(step: int, config: OptimConfig, steps: int) -> float:
    """Returns the factor of the peak learning rate at a 0-based step.

    From step `steps` on, the factor keeps its final value.
    """
    return SCHEDULES[config.schedule](min(step, steps), config, steps)


def _poly(step: int, config: OptimConfig, steps: int) -> float:
    """Polynomial decay times a linear warm-up.

    The decay starts at step 0, as published, so the learning rate never quite reaches its peak.
    """
    poly = float((1 - step / steps) ** config.power)
    return _warmed(step, config) * _between(config.min_lr_ratio, 1, poly)


def _cosine(step: int, config: OptimConfig, steps: int) -> float:
    """Linear warm-up, then a half cosine down to `min_lr_ratio`."""
    if step < config.warmup_steps:
        return _warmed(step, config)
    return _between(config.min_lr_ratio, 1, _half_cosine((step - config.warmup_steps) / (steps - config.warmup_steps)))


def _one_cycle(step: int, config: OptimConfig, steps: int) -> float:
    """Half cosine up from `warmup_lr_ratio`, then a half cosine down to `min_lr_ratio` at the last step.

    The schedule matches torch's OneCycleLR.
    """
    peak, last = config.warmup_steps, max(steps - 1, 1)
    if step < peak:
        return _between(1, config.warmup_lr_ratio, _half_cosine(step / peak))
    return _between(config.min_lr_ratio, 1, _half_cosine(min(1.0, (step - peak) / max(1, last - peak))))


SCHEDULES = {"poly": _poly, "cosine": _cosine, "one_cycle": _one_cycle}


def _warmed(step: int, config: OptimConfig) -> float:
    return _between(config.warmup_lr_ratio, 1, min(1.0, step / config.warmup_steps)) if config.warmup_steps else 1.0


def _half_cosine(progress: float) -> float:
    """Returns a half cosine that falls from 1 at 0 to 0 at 1."""
    return (1 + cos(pi * progress)) / 2


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def set_lr(optimiser: Optimizer, factor: float) -> None:
    """Sets the learning rate of every group to its peak times the factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor


OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""State of AdamW by parameter name: "step", "exp_avg" and "exp_avg_sq"."""


def optimizer_state_by_name(optimiser: Optimizer, model: nn.Module) -> OptimizerState:
    """Returns the optimiser state of each updated parameter by name, without copying."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in optimiser.state.items()}


def load_optimizer_state(optimiser: Optimizer, model: nn.Module, stored: OptimizerState) -> None:
    """Restores the state returned by `optimizer_state_by_name`.

    The state contains no learning rates, weight decays or groups; these follow from the settings. A parameter without a
    stored state starts without one. Each tensor is converted to the device and memory layout of its parameter, which
    fused steps require.
    """
    trained = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in trained and name in stored:
            optimiser.state[parameter] = {key: _like(parameter, value) for key, value in stored[name].items()}


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    if value.ndim == 0:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
