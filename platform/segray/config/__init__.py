"""The configuration: one tree of settings. `root` defines the tree, and `load` reads it from files and flags."""

from segray.config.data import DataConfig
from segray.config.eval import EvalConfig
from segray.config.load import build, flatten, format_errors, load, merge
from segray.config.loss import LossConfig
from segray.config.model import ModelConfig
from segray.config.promote import PromoteConfig
from segray.config.root import Config
from segray.config.serve import ServeConfig
from segray.config.tracking import TrackingConfig
from segray.config.train import OptimConfig, TrainConfig
from segray.config.tune import TuneConfig

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
    "flatten",
    "format_errors",
    "load",
    "merge",
]
