"""The published optimiser: AdamW, the head at ten times the rate, no decay on layer norms, warm-up and poly."""

from torch import nn
from torch.optim import AdamW, Optimizer

from segray.config import OptimConfig

HEAD_PREFIX = "head."
NORM = "norm"


def adamw(model: nn.Module, config: OptimConfig) -> AdamW:
    """Returns AdamW over the parameter groups of `model`, its rates at those of step 0."""
    groups = parameter_groups(model, config)
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Returns the groups for AdamW; every trainable parameter stands in exactly one.

    A group's `peak_lr` is what the schedule scales. Parameters of layers named `norm` are not decayed; the
    head's batch norm is, as published (its name there is `bn`).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith(HEAD_PREFIX), NORM in name)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": config.lr * (config.head_lr_factor if in_head else 1.0),
            "weight_decay": 0.0 if is_norm else config.weight_decay,
        }
        for (in_head, is_norm), parameters in groups.items()
    ]


def lr_factor(step: int, config: OptimConfig, steps: int) -> float:
    """Returns what the peak rate is multiplied with at a step, 0-based: poly times a linear warm-up.

    The poly decay runs from step 0, as published, so the peak itself is never quite reached.
    """
    poly = float((1 - step / steps) ** config.power) if step < steps else 0.0
    if step >= config.warmup_steps:
        return poly
    warmed = step / config.warmup_steps
    return poly * (config.warmup_ratio + (1 - config.warmup_ratio) * warmed)


def set_lr(optimiser: Optimizer, factor: float) -> None:
    """Sets every group's rate to its peak times the factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
