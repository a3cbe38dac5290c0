"""The score of a run: the metric that decides which checkpoints are kept and registered, and when a run ends early."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from segray.config import Config
from segray.config.train import DEFAULT_SCORE
from segray.core.errors import ConfigError, did_you_mean, format_list
from segray.data.manifest import Manifest
from segray.evaluation.metrics.scores import scores_from_confusion

__all__ = ["DEFAULT_SCORE", "available_scores", "score_sign", "signed_score", "validate_score", "validate_score_class"]

TRAIN_LOSS = "train/loss"
CLASS_IOU = "val/iou/"
MINIMISED = (TRAIN_LOSS,)
"""Scores for which lower is better."""


def available_scores(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the metrics that a checkpoint of a model with these classes can be compared by."""
    counts = np.eye(len(class_names), dtype=np.int64)
    return (*scores_from_confusion(counts, class_names).as_metrics("val"), TRAIN_LOSS)


def score_sign(score: str) -> int:
    """Returns 1 for a score for which higher is better, -1 for the others."""
    return -1 if score in MINIMISED else 1


def signed_score(metrics: Mapping[str, float], score: str) -> float | None:
    """Returns the value of a score, negated if lower is better; `None` if it is missing or not finite."""
    value = metrics.get(score)
    return None if value is None or not math.isfinite(value) else score_sign(score) * value


def validate_score(config: Config, manifest: Manifest) -> None:
    """Checks that the runs of these settings report `train.score`.

    Raises:
        ConfigError: the score is unknown (the message lists those that are available), or it is the IoU of a class that
            the validation split does not contain.
    """
    available, score = available_scores(manifest.classes.names), config.train.score
    if score not in available:
        raise ConfigError(
            f"train.score is {score}, which no validation reports{did_you_mean(score, available) or '.'} Available "
            f"scores:{format_list(available)}"
        )
    validate_score_class("train.score", score, config, manifest)


def validate_score_class(setting: str, score: str, config: Config, manifest: Manifest) -> None:
    """Checks that the validation split contains the class of a score, if it is the IoU of a class.

    The IoU of any other class is missing, or 0 after a single wrong prediction.

    Args:
        setting: setting that the score is a value of.
        score: name of the score.
        config: settings of the run or sweep.
        manifest: manifest of the dataset.

    Raises:
        ConfigError: the split does not contain the class.
    """
    name, split = score.removeprefix(CLASS_IOU), config.data.val_split
    if not score.startswith(CLASS_IOU) or name not in manifest.classes.names:
        return
    if manifest.split(split).class_pixels[manifest.classes.names.index(name)] == 0:
        raise ConfigError(
            f"{setting} is {score}, and split '{split}' contains no pixel of class {name}; expected a class of that "
            "split; use val/miou, or a validation split with this class."
        )
