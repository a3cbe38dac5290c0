"""The root of the settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` all name the same setting. A Config that validates can run.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from segray.config.data import DataConfig
from segray.config.eval import EvalConfig
from segray.config.fields import Settings, invalid_setting
from segray.config.loss import LossConfig
from segray.config.model import ModelConfig
from segray.config.promote import PromoteConfig
from segray.config.serve import ServeConfig
from segray.config.tracking import NAME, TrackingConfig
from segray.config.train import OptimConfig, TrainConfig
from segray.config.tune import TuneConfig
from segray.core.errors import ConfigError

_OF_THE_RUN = (
    *(
        "workers",
        "min_workers",
        "device",
        "compile",
        "resize_interval_s",
        "max_nonfinite_steps",
        "max_failures",
        "hang_timeout_s",
    ),
    *("log_every", "val_every", "checkpoint_every", "score", "keep_best", "keep_every"),
    *("patience", "min_delta", "min_steps"),
)
_SECTIONS = ("name", "results", "tracking", "tune", "promote", "serve")
CHANGEABLE_ON_RESUME = frozenset(
    {*_SECTIONS, "data.root", "data.augment_on", "data.bad_rows", "model.activation_checkpointing"}
).union(f"train.{name}" for name in _OF_THE_RUN)
"""Settings and sections that may change on resume: they do not affect what is learned, or affect only its end."""


class Config(Settings):
    """All settings of a run."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """Name of the run and its folder. Defaults to a generated name."""
    results: str = "results"
    """Folder of all runs. On a cluster, every node must have access to it under the same path."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    tune: TuneConfig = TuneConfig()
    promote: PromoteConfig = PromoteConfig()
    serve: ServeConfig = ServeConfig()

    def with_eval_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Returns the settings with some settings of the section `eval` replaced.

        Args:
            overrides: new values by name, such as {"mode": "slide"}.

        Raises:
            ConfigError: a name or value is invalid, or the sliding windows are.
        """
        if not overrides:
            return self
        try:
            section = EvalConfig.model_validate(self.eval.model_dump() | dict(overrides))
            section.validate_windows(self.data.crop)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self.model_copy(update={"eval": section})

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Without data.crop, the crop may be that of a checkpoint, which `with_eval_overrides` checks.
        self.eval.validate_windows(self.data.crop if "crop" in self.data.model_fields_set else None)
        if self.train.batch < self.train.workers:
            raise invalid_setting(
                "train.batch",
                self.train.batch,
                f"at least one image for each of the {self.train.workers} workers",
            )
        if self.train.accumulation_steps > self.train.batch // self.train.workers:
            raise invalid_setting(
                "train.accumulation_steps",
                self.train.accumulation_steps,
                f"at most {self.train.batch // self.train.workers}, the number of images per worker and step",
            )
        if self.train.min_workers is not None and self.train.min_workers > self.train.workers:
            raise invalid_setting(
                "train.min_workers", self.train.min_workers, f"at most train.workers, {self.train.workers}"
            )
        if self.optim.warmup_steps >= self.train.steps:
            raise invalid_setting(
                "optim.warmup_steps", self.optim.warmup_steps, f"fewer than train.steps, {self.train.steps}"
            )
        return self

    def training_settings(self) -> dict[str, Any]:
        """Returns the settings that affect what is learned, by dotted key. All others may change on resume."""
        tree = {
            section: part
            for section, part in self.model_dump(mode="json").items()
            if section not in CHANGEABLE_ON_RESUME
        }
        flat = {f"{section}.{name}": value for section, part in tree.items() for name, value in part.items()}
        return {key: value for key, value in flat.items() if key not in CHANGEABLE_ON_RESUME}

    @property
    def digest(self) -> str:
        """Hash of the settings that affect what is learned."""
        return hashlib.blake2b(json.dumps(self.training_settings(), sort_keys=True).encode(), digest_size=8).hexdigest()
