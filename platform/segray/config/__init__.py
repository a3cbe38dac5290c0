"""The configuration: one tree of settings, four uses. See `schema` for the settings, `load` for their origins."""

from segray.config.load import build, explain, flat, load, merge
from segray.config.promotion import PromoteConfig
from segray.config.schema import (
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainConfig,
)
from segray.config.serving import ServeConfig
from segray.config.tuning import TuneConfig

__all__ = [
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PromoteConfig",
    "ServeConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "build",
    "explain",
    "flat",
    "load",
    "merge",
]
