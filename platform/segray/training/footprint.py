"""Estimates of the storage and memory needed by a run."""

from collections.abc import Iterable
from math import ceil
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from segray.config import Config
from segray.core.classes import Classes
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model
from segray.training.engine.train_state import freeze_parts

MOMENTS_PER_PARAMETER = 2  # optimiser moments for each parameter
VARIANT = "model.variant"
ALWAYS_KEPT = 2  # the last checkpoint and the one being written


def gradient_bytes(config: Config, classes: Classes) -> int:
    """Returns the size in bytes of the gradients that workers all-reduce.

    For a sweep over variants, the size is that of the largest variant.
    """
    return max(sizes.trained for sizes in _model_sizes(config, classes))


def checkpoint_bytes(config: Config, classes: Classes) -> int:
    """Returns the size of a checkpoint in bytes. For a sweep over variants, it is the mean over the variants."""
    num_weights = 2 if config.train.ema_decay else 1
    return round(
        mean(
            num_weights * sizes.weights + MOMENTS_PER_PARAMETER * sizes.trained
            for sizes in _model_sizes(config, classes)
        )
    )


class _ModelSizes(NamedTuple):
    """Sizes in bytes of all weights of a model and of the parameters that are trained."""

    weights: int
    trained: int


def _model_sizes(config: Config, classes: Classes) -> list[_ModelSizes]:
    """Returns the sizes of the model of a Config, or of each variant of a sweep."""
    return [_sizes(_empty(config, variant, classes), config) for variant in _variants(config)]


def _sizes(model: SegmentationModel, config: Config) -> _ModelSizes:
    freeze_parts(config, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _ModelSizes(_num_bytes(model.state_dict().values()), _num_bytes(trained))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
