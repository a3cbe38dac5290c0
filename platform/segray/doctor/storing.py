"""What a run stores, before there is any of it."""

from math import ceil

import torch

from segray import checkpoint
from segray.classes import Classes
from segray.config import Config

WIDTH = 4  # bytes of a float32
MOMENTS = 2  # of the optimiser, for each parameter
VARIANT = "model.variant"
NEWEST = 2  # the last checkpoint, and one that is being written


def parameter_bytes(config: Config, classes: Classes) -> int:
    """Returns the bytes of the parameters of a Config's model, and of the gradients its workers sum.

    Of a sweep over variants, those of the largest.
    """
    return max(_parameter_bytes(one, classes) for one in _variants(config))


def _variants(config: Config) -> list[Config]:
    names = config.tune.space.get(VARIANT, {}).get("choice", [config.model.variant])
    return [config.model_copy(update={"model": config.model.model_copy(update={"variant": name})}) for name in names]


def _parameter_bytes(config: Config, classes: Classes) -> int:
    with torch.device("meta"):
        model = checkpoint.build_model(config, classes)
    return sum(parameter.numel() for parameter in model.parameters()) * WIDTH


def checkpoint_bytes(config: Config, parameters: int) -> int:
    """Returns the bytes of a checkpoint.

    Args:
        config: of the run.
        parameters: bytes of its model's.
    """
    return parameters * (1 + MOMENTS + (config.train.ema is not None))


def kept(config: Config) -> int:
    """Returns how many checkpoints a run, or the trials of a sweep together, keep at once."""
    train = config.train
    every = ceil(train.steps / train.keep_every) if train.keep_every else 0
    runs = config.tune.most_trials + config.tune.seeds if config.tune.space else 1
    return (train.keep_best + NEWEST + every) * runs
