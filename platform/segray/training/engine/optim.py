"""The published optimiser: AdamW, the head at ten times the rate, no decay on layer norms, and its schedule."""

import re
from collections.abc import Callable, Mapping
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from segray.config import OptimConfig
from segray.core.errors import ModelError

HEAD_PREFIXES = ("head.", "aux_head.")
NORM = "norm"
LAYER = re.compile(r"encoder\.stages\.(\d+)\.(?:(embedding|norm)|blocks\.(\d+))\.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Returns AdamW over the parameter groups of `model`, its rates at those of step 0."""
    groups = parameter_groups(model, config)
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Returns the groups for AdamW; every trainable parameter stands in exactly one.

    A group's `peak_lr` is what the schedule scales. Parameters of layers named `norm` are not decayed; the
    head's batch norm is, as published (its name there is `bn`).

    Raises:
        ModelError: `optim.layer_decay` is not 1, and the encoder is a plug-in, whose layers have no known order.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rate = _rates(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = rate(name), 0.0 if NORM in name else config.weight_decay
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "peak_lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _rates(model: nn.Module, config: OptimConfig) -> Callable[[str], float]:
    """Returns the function from a parameter's name to what the peak rate is multiplied with."""
    depths: tuple[int, ...] = getattr(getattr(model, "encoder", None), "depths", ())
    if config.layer_decay != 1 and not depths:
        raise ModelError(
            f"optim.layer_decay is {config.layer_decay}; expected 1 with an encoder of your own, whose layers have "
            "no known order."
        )

    def rate(name: str) -> float:
        if name.startswith(HEAD_PREFIXES):
            return config.head_lr_factor
        if config.layer_decay == 1:
            return 1.0
        return float(config.layer_decay ** (sum(depths) + 1 - layer_index(name, depths)))

    return rate


def layer_index(name: str, depths: tuple[int, ...]) -> int:
    """Returns the number of an encoder parameter's layer: 0 for the first embedding, then 1 for the first block.

    A later stage's embedding belongs to its first block, a stage's norm to its last.
    """
    found = LAYER.match(name)
    assert found is not None, name
    stage, part, block = int(found[1]), found[2], found[3]
    before = sum(depths[:stage])
    if part == "norm":
        return before + depths[stage]
    if part == "embedding":
        return before + 1 if stage else 0
    return before + int(block) + 1


def lr_multiplier(step: int, config: OptimConfig, steps: int) -> float:
    """Returns what the peak rate is multiplied with at a step, 0-based; from `steps` on, what it ends with."""
    return SCHEDULES[config.schedule](min(step, steps), config, steps)


def _poly(step: int, config: OptimConfig, steps: int) -> float:
    """Poly times a linear warm-up; it decays from step 0, as published, so the peak itself is never quite reached."""
    poly = float((1 - step / steps) ** config.power)
    return _warmed(step, config) * _between(config.min_ratio, 1, poly)


def _cosine(step: int, config: OptimConfig, steps: int) -> float:
    """A linear warm-up, then half a cosine to `min_ratio`."""
    if step < config.warmup_steps:
        return _warmed(step, config)
    return _between(config.min_ratio, 1, _half_cosine((step - config.warmup_steps) / (steps - config.warmup_steps)))


def _one_cycle(step: int, config: OptimConfig, steps: int) -> float:
    """Half a cosine up from `warmup_ratio`, and another down to `min_ratio` at the last step, as torch's OneCycleLR."""
    peak, last = config.warmup_steps, max(steps - 1, 1)
    if step < peak:
        return _between(1, config.warmup_ratio, _half_cosine(step / peak))
    return _between(config.min_ratio, 1, _half_cosine(min(1.0, (step - peak) / max(1, last - peak))))


SCHEDULES = {"poly": _poly, "cosine": _cosine, "one_cycle": _one_cycle}


def _warmed(step: int, config: OptimConfig) -> float:
    return _between(config.warmup_ratio, 1, min(1.0, step / config.warmup_steps)) if config.warmup_steps else 1.0


def _half_cosine(progress: float) -> float:
    """Returns 1 at 0, falling to 0 at 1."""
    return (1 + cos(pi * progress)) / 2


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def set_lr(optimiser: Optimizer, factor: float) -> None:
    """Sets every group's rate to its peak times the factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor


OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""By the parameter's name: AdamW's "step", "exp_avg" and "exp_avg_sq"."""


def optimizer_state_by_name(optimiser: Optimizer, model: nn.Module) -> OptimizerState:
    """Returns what an optimiser remembers of each parameter that it has moved, not copied."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in optimiser.state.items()}


def load_optimizer_state(optimiser: Optimizer, model: nn.Module, stored: OptimizerState) -> None:
    """Has an optimiser take up what `moments` returned.

    Rates and decay are not part of it: they are the settings'. Neither are groups; a parameter of which nothing is
    stored starts afresh. Each tensor takes its parameter's device and layout, which a fused step relies on.
    """
    trained = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in trained and name in stored:
            optimiser.state[parameter] = {key: _like(parameter, value) for key, value in stored[name].items()}


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    if value.ndim == 0:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
