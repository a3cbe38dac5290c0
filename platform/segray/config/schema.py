"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

import hashlib
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from segray.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]

Transform = str | dict[str, dict[str, Any] | None]
"""NAME, or NAME: {argument: value, ...}."""
Transforms = tuple[Transform, ...] | None

STORED = "stored"
"""Key of the validation context: the config comes from a checkpoint, and is not about to train."""

CROP_MULTIPLE = 32
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of a folder, of a registered model


def _is_transform(found: object) -> bool:
    if isinstance(found, dict):
        return (
            len(found) == 1
            and all(isinstance(one, str) for one in found)
            and all(one is None or isinstance(one, dict) for one in found.values())
        )
    return isinstance(found, str)


def _transforms(value: object) -> object:
    """Returns the transforms of a file, or of a flag that spells them as YAML."""
    expected = "a list of NAME or NAME: {argument: value}, e.g. '[ScaledCrop, {GaussNoise: {p: 0.2}}]'"
    try:
        found = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise _impossible("data.augment", value, expected) from error
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(map(_is_transform, found)):
        raise _impossible("data.augment", value, expected)
    return found


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(_Settings):
    """Which data, and how a training crop is made of it."""

    root: str = "data/demo"
    """Dataset folder or URI, as written by prepare."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to validate on."""
    short_side: Positive | None = None
    """Images are resized to this short side (px) before anything else; none keeps their own size."""
    crop: Positive = 512
    """Side of the square training crop in px, a multiple of 32."""
    scale_min: Annotated[float, Field(gt=0)] = 0.5
    """Smallest random scale."""
    scale_max: Annotated[float, Field(gt=0)] = 2.0
    """Largest random scale."""
    cat_max_ratio: Fraction = 0.75
    """A crop with more than this share of one class is drawn again, up to ten times."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue at random."""
    class_crops: Fraction = 0.0
    """Share of the crops that are placed around a pixel of a class drawn from those in the image."""
    augment: Annotated[Transforms, BeforeValidator(_transforms)] = None
    """Albumentations transforms, a list of NAME or NAME: {argument: value}, in place of the recipe above."""
    mosaic: Fraction = 0.0
    """Probability that a crop is a mosaic of four rows."""
    cut_mix: Fraction = 0.0
    """Probability that a box of another row's crop is pasted into a crop."""
    sampler: Literal["all", "rare_class", "repeat"] = "all"
    """How often an epoch holds a row: each once; the likelier the more of a rare class; or repeated for rare ones."""
    temperature: Annotated[float, Field(gt=0)] = 0.01
    """Of the sampler rare_class: the lower, the more the rarest classes count."""
    repeat_below: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the sampler repeat: images with a class that fewer than this share of the images have are repeated."""
    decode: Literal["trainer", "cluster"] = "trainer"
    """Who makes the crops: the trainers' own threads, or tasks on the cluster's free CPUs."""
    bad_rows: Literal["fail", "skip"] = "fail"
    """A row that cannot be decoded ends the run, or is left out and counted."""

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.crop % CROP_MULTIPLE:
            use = max(CROP_MULTIPLE, round(self.crop / CROP_MULTIPLE) * CROP_MULTIPLE)
            raise _impossible("data.crop", self.crop, f"a multiple of {CROP_MULTIPLE}", f"use {use}")
        if self.scale_min > self.scale_max:
            raise _impossible("data.scale_min", self.scale_min, f"at most data.scale_max, {self.scale_max}")
        if self.augment is not None:
            self._check_augment(info)
        return self

    def _check_augment(self, info: ValidationInfo) -> None:
        if (info.context or {}).get(STORED):
            return  # a model is used long after its training, where other transforms may be known
        # Upstairs, and only for who names transforms: what albumentations knows is known to albumentations.
        try:
            from segray.data.augment.transforms import check  # noqa: PLC0415

            check(self)
        except ModuleNotFoundError:
            return  # a machine that only computes does not augment
        except ConfigError as error:
            raise ValueError(str(error)) from error


class ModelConfig(_Settings):
    """Which SegFormer."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    """Size of the model."""
    init: str | None = None
    """Weights to start from: a folder, a file, a hub id or models:/NAME@ALIAS; none draws them at random."""
    encoder: str = "mit"
    """Encoder: mit, or module:attribute of your own (docs/plugins.md)."""
    head: str = "official"
    """Decode head: official, mmseg, or module:attribute of your own."""
    loss: str = "cross_entropy"
    """Loss: cross_entropy, or module:attribute of your own."""
    norm_eps: Literal["official", "mmseg", "transformers"] = "official"
    """Whose epsilons the layer norms have; take those of the weights to start from."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping them: less memory, more time."""
    drop_path: Fraction = 0.1
    """Largest stochastic-depth rate; it rises linearly from 0 over the blocks."""
    dropout: Fraction = 0.1
    """Dropout of whole channels before the classifier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {"encoder": ("mit",), "head": ("official", "mmseg"), "loss": ("cross_entropy",)}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values and ":" not in value:
                raise _impossible(f"model.{name}", value, f"{', '.join(values)}, or module:attribute")
        return self


class OptimConfig(_Settings):
    """AdamW and its schedule: linear warm-up, then polynomial decay to 0."""

    lr: Annotated[float, Field(gt=0)] = 6e-5
    """Peak learning rate of the encoder."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 10.0
    """The head learns at lr times this."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of every parameter except the layer norms."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    warmup_steps: Count = 1500
    """Steps of linear warm-up."""
    warmup_ratio: Fraction = 1e-6
    """The warm-up starts at lr times this."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial decay."""


class TrainConfig(_Settings):
    """The run: how long, how wide, how often it looks up."""

    steps: Positive = 160_000
    """Optimiser steps."""
    batch: Positive = 16
    """Images of one optimiser step over all workers together."""
    workers: Positive = 1
    """DDP workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes GPUs if the cluster has any."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, order, crops and dropout."""
    log_every: Positive = 50
    """Steps between two reports of loss, lr and throughput."""
    val_every: Positive = 4000
    """Steps between two validations, each with a checkpoint; the last step is always validated."""


class EvalConfig(_Settings):
    """How a model is evaluated."""

    align: Positive = 32
    """Sides are rounded up to a multiple of this for the forward pass; counted at the mask's own size."""


class TrackingConfig(_Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; none takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str = "segray"
    """MLflow experiment."""
    model: Annotated[str, Field(pattern=NAME)] = "segray"
    """Name the best checkpoint is registered under."""


class Config(_Settings):
    """Everything a run is determined by."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """Name of the run and its folder; none makes a fresh one."""
    results: str = "results"
    """Folder that holds the runs; on a cluster one that every node sees."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train.batch < self.train.workers:
            raise _impossible(
                "train.batch",
                self.train.batch,
                f"at least one image for each of the {self.train.workers} workers",
            )
        if self.optim.warmup_steps >= self.train.steps:
            raise _impossible(
                "optim.warmup_steps", self.optim.warmup_steps, f"fewer than train.steps, {self.train.steps}"
            )
        return self

    @property
    def digest(self) -> str:
        """Hash over the settings that decide what is learned (the run's name and places do not)."""
        decisive = self.model_dump_json(exclude={"name": True, "results": True, "tracking": True})
        return hashlib.blake2b(decisive.encode(), digest_size=8).hexdigest()


def _impossible(key: str, value: object, expected: str, advice: str = "") -> ValueError:
    return ValueError(f"{key} is {value}; expected {expected}{'; ' + advice if advice else ''}.")
