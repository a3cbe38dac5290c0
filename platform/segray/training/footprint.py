"""Estimates of the storage and memory needed by a run."""

from math import ceil
from statistics import mean

import torch

from segray.config import Config
from segray.core.classes import Classes
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model

FLOAT32_BYTES = 4  # bytes of a float32
MOMENTS_PER_PARAMETER = 2  # optimiser moments for each parameter
VARIANT = "model.variant"
ALWAYS_KEPT = 2  # the last checkpoint and the one being written


def gradient_bytes(config: Config, classes: Classes) -> int:
    """Returns the size in bytes of the gradients that workers all-reduce.

    For a sweep over variants, the size is that of the largest variant.
    """
    return max(_parameter_bytes(config, classes))


def checkpoint_bytes(config: Config, classes: Classes) -> int:
    """Returns the size of a checkpoint in bytes. For a sweep over variants, it is the mean over the variants."""
    return round(
        mean(_parameter_bytes(config, classes)) * (1 + MOMENTS_PER_PARAMETER + (config.train.ema_decay is not None))
    )


def _parameter_bytes(config: Config, classes: Classes) -> list[int]:
    """Returns the parameter size in bytes of the model of a Config, or of each variant of a sweep."""
    return [
        sum(parameter.numel() for parameter in model.parameters()) * FLOAT32_BYTES
        for model in (_empty(config, variant, classes) for variant in _variants(config))
    ]


def _variants(config: Config) -> list[str]:
    return list(config.tune.space.get(VARIANT, {}).get("choice", [config.model.variant]))


def _empty(config: Config, variant: str, classes: Classes) -> SegmentationModel:
    settings = config.model.model_copy(update={"variant": variant})
    with torch.device("meta"):
        return build_model(config.model_copy(update={"model": settings}), classes)


def num_kept_checkpoints(config: Config) -> int:
    """Returns the number of checkpoints that a run, or all trials of a sweep together, keep at once."""
    train = config.train
    every = ceil(train.steps / train.keep_every) if train.keep_every else 0
    runs = config.tune.max_trials + config.tune.seeds if config.tune.space else 1
    return (train.keep_best + ALWAYS_KEPT + every) * runs
