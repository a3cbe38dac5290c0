"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from segray.config import spelt
from segray.config.base import Count, Fraction, Positive, Settings
from segray.config.promotion import PromoteConfig
from segray.config.serving import ServeConfig
from segray.config.spelt import LOSSES, impossible
from segray.config.tuning import TuneConfig
from segray.errors import ConfigError

Decay = Annotated[float, Field(ge=0, lt=1)]

Transform = str | dict[str, dict[str, Any] | None]
"""NAME, or NAME: {argument: value, ...}."""
Transforms = tuple[Transform, ...] | None

Terms = tuple[str | dict[str, float], ...]
"""Of NAME, or NAME: weight."""
ClassWeights = str | tuple[float, ...] | None

Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=10)], ...], BeforeValidator(spelt.numbers)]
Widths = Annotated[tuple[Positive, ...], BeforeValidator(spelt.numbers)]

STORED = "stored"
"""Key of the validation context: the config comes from a checkpoint, and is not about to train."""

_OF_THE_RUN = (
    *("workers", "min_workers", "device", "compile", "grow_s", "max_skipped", "max_failures", "hang_s"),
    *("log_every", "val_every", "checkpoint_every", "keep_best", "keep_every", "patience", "min_gain", "min_steps"),
)
_SECTIONS = ("name", "results", "tracking", "tune", "promote", "serve")
CHANGEABLE = frozenset({*_SECTIONS, "data.root", "data.decode", "data.bad_rows", "model.checkpointing"}).union(
    f"train.{name}" for name in _OF_THE_RUN
)
"""Settings and sections that do not decide what is learned, or only when it ends."""

CROP_MULTIPLE = 32
STRIDE_MULTIPLE = 4  # a model's scores are a quarter of its image
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of a folder, of a registered model


class DataConfig(Settings):
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
    augment: Annotated[Transforms, BeforeValidator(spelt.transforms)] = None
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
            raise impossible("data.crop", self.crop, f"a multiple of {CROP_MULTIPLE}", f"use {use}")
        if self.scale_min > self.scale_max:
            raise impossible("data.scale_min", self.scale_min, f"at most data.scale_max, {self.scale_max}")
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


class ModelConfig(Settings):
    """Which SegFormer."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    """Size of the model."""
    init: str | None = None
    """Weights to start from: folder, file, hub id or models:/NAME@ALIAS, {variant} in it stands for model.variant."""
    encoder: str = "mit"
    """Encoder: mit, or module:attribute of your own (docs/plugins.md)."""
    head: str = "official"
    """Decode head: official, mmseg, or module:attribute of your own."""
    aux_head: bool = False
    """Train with a second head, an FCN on the third stage, whose loss is weighted by loss.aux_weight."""
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
        known = {"encoder": ("mit",), "head": ("official", "mmseg")}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values and ":" not in value:
                raise impossible(f"model.{name}", value, f"{', '.join(values)}, or module:attribute")
        return self


class LossConfig(Settings):
    """What is minimised: a weighted sum of losses."""

    terms: Annotated[Terms, BeforeValidator(spelt.terms)] = ("cross_entropy",)
    """Losses, a list of NAME or NAME: weight; a NAME may be module:attribute of your own."""
    class_weights: Annotated[ClassWeights, BeforeValidator(spelt.class_weights)] = None
    """Of cross_entropy, ohem and focal: a number for each class, or balanced or median, made of the pixel counts."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of cross_entropy and ohem: share of the target that is spread over all classes."""
    ohem_threshold: Fraction = 0.7
    """Of ohem: pixels whose own class has a lower probability are hard."""
    ohem_share: Fraction = 1 / 16
    """Of ohem: at least this share of an image's pixels is kept."""
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    """Of focal: the higher, the less the easy pixels count."""
    tversky_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Of tversky: weight of false positives."""
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7
    """Of tversky: weight of false negatives."""
    boundary_reach: Positive = 2
    """Of boundary: an outline counts as met within so many pixels."""
    aux_weight: Annotated[float, Field(ge=0)] = 0.4
    """Of model.aux_head's cross-entropy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [term if isinstance(term, str) else next(iter(term)) for term in self.terms]
        for name in names:
            if name not in LOSSES and ":" not in name:
                raise impossible("loss.terms", name, f"{', '.join(LOSSES)}, or module:attribute")
        if len(set(names)) < len(names):
            raise impossible("loss.terms", names, "each loss once; give it a weight instead")
        return self

    def weighted(self) -> dict[str, float]:
        """Returns the weight of each loss, by name."""
        pairs = [(term, 1.0) if isinstance(term, str) else next(iter(term.items())) for term in self.terms]
        return dict(pairs)


class OptimConfig(Settings):
    """AdamW and its schedule."""

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
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block of the encoder learns at this times the rate of the one above it."""
    schedule: Literal["poly", "cosine", "one_cycle"] = "poly"
    """How the rate falls: as published, along half a cosine, or up and down along two."""
    warmup_steps: Count = 1500
    """Steps of warm-up: linear, or, of one_cycle, half a cosine."""
    warmup_ratio: Fraction = 1e-6
    """The warm-up starts at lr times this."""
    min_ratio: Fraction = 0.0
    """The schedule ends at lr times this."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial decay."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; a larger one is scaled down to it."""


class TrainConfig(Settings):
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; the weights stay float32."""
    accumulate: Positive = 1
    """A worker computes its share of a step in so many parts, in less memory; batch norms see a part at a time."""
    ema: Decay = 0.0
    """Share that a moving average of the weights keeps at each step; it is what is validated. 0 has none."""
    batch_norm: Literal["global", "frozen"] = "global"
    """Batch norms see the global batch, or keep the moments that the run starts with."""
    freeze_encoder: bool = False
    """Train the heads alone."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = False
    """Keep the weights of convolutions channels-last."""
    deterministic: bool = False
    """Take deterministic kernels alone; docs/training.md says what that covers."""
    log_every: Positive = 50
    """Steps between two reports of loss, lr and throughput."""
    val_every: Positive = 4000
    """Steps between two validations, each with a checkpoint; the last step is always validated."""
    checkpoint_every: Positive | None = 1000
    """Steps between two checkpoints beside those of validations: what a run loses at most."""
    keep_best: Positive = 1
    """Checkpoints of the highest val/miou that are kept; the last one always is."""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of this are kept too."""
    patience: Positive | None = None
    """Validations in a row without a better val/miou that end the run early."""
    min_gain: Fraction = 0.0
    """A val/miou is better if it exceeds the best by more than this."""
    min_steps: Count = 0
    """No run ends early before this step."""
    max_skipped: Positive = 20
    """Steps in a row without a finite gradient that end the run; single ones are skipped and counted."""
    max_failures: Count = 3
    """Losses of workers that the run goes on after, each from its last checkpoint; preemptions do not count."""
    hang_s: Annotated[float, Field(gt=0)] = 900
    """A worker that does not move for so many seconds is ended, which counts as a loss."""
    min_workers: Positive | None = None
    """Go on with so many workers where there are no resources for more; none waits for all of them."""
    grow_s: Annotated[float, Field(gt=0)] = 60
    """Seconds between two looks for resources for more workers, up to train.workers, while there are fewer."""


class EvalConfig(Settings):
    """How a model is evaluated."""

    align: Positive = 32
    """Sides are rounded up to a multiple of this for the forward pass; counted at the mask's own size."""
    mode: Literal["whole", "slide"] = "whole"
    """An image is looked at whole, or in windows that slide over it and are blended."""
    crop: Positive | None = None
    """slide: side of a window in px, a multiple of 32; none takes data.crop."""
    stride: Positive | None = None
    """slide: px from a window to the next, a multiple of 4; none takes three quarters of the window."""
    windows: Positive = 4
    """slide: windows in one forward pass."""
    scales: Annotated[Scales, Field(min_length=1)] = (1.0,)
    """Scales of the image whose probabilities are averaged."""
    flip: bool = False
    """Average with the mirror image, at each scale."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass."""
    absent: Literal["skip", "zero", "nan"] = "skip"
    """What classes that are neither true nor predicted are to the means."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Of the F-score: how many times as much recall weighs as precision."""
    calibration: bool = False
    """Count how sure the model is, too."""
    boundary: Widths = ()
    """Widths (px) for which boundary IoU is counted."""
    trimap: Widths = ()
    """Widths (px) of the band around contours in which IoU is counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        crop, stride = self.crop, self.stride
        if crop is not None and crop % CROP_MULTIPLE:
            raise impossible("eval.crop", crop, f"a multiple of {CROP_MULTIPLE}")
        if stride is not None and stride % STRIDE_MULTIPLE:
            raise impossible("eval.stride", stride, f"a multiple of {STRIDE_MULTIPLE}")
        return self

    def check_windows(self, crop: int) -> None:
        """Refuses windows that leave pixels out, or whose sides a model's scores do not divide.

        Args:
            crop: side of a window where no other is given.

        Raises:
            ValueError: they are such.
        """
        side = self.crop or crop
        if self.mode == "slide" and self.stride is not None and self.stride > side:
            raise impossible("eval.stride", self.stride, f"at most a window's {side}; pixels between would not be seen")
        if self.mode == "slide" and self.align % CROP_MULTIPLE:
            raise impossible("eval.align", self.align, f"a multiple of {CROP_MULTIPLE} where windows slide")


class TrackingConfig(Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; none takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str = "segray"
    """MLflow experiment."""
    model: Annotated[str, Field(pattern=NAME)] = "segray"
    """Name the best checkpoint is registered under."""


class Config(Settings):
    """Everything a run is determined by."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """Name of the run and its folder; none makes a fresh one."""
    results: str = "results"
    """Folder that holds the runs; on a cluster one that every node sees."""
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

    def looked_at(self, asked: EvalConfig | None) -> Self:
        """Returns a model's own settings with those of evaluation laid over them that were given."""
        if asked is None:
            return self
        given = {name: getattr(asked, name) for name in asked.model_fields_set}
        laid = self.eval.model_copy(update=given)
        try:
            laid.check_windows(self.data.crop)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self.model_copy(update={"eval": laid})

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.eval.check_windows(self.data.crop)
        if self.train.batch < self.train.workers:
            raise impossible(
                "train.batch",
                self.train.batch,
                f"at least one image for each of the {self.train.workers} workers",
            )
        if self.train.accumulate > self.train.batch // self.train.workers:
            raise impossible(
                "train.accumulate",
                self.train.accumulate,
                f"at most the {self.train.batch // self.train.workers} images that each worker has of a step",
            )
        if self.train.min_workers is not None and self.train.min_workers > self.train.workers:
            raise impossible(
                "train.min_workers", self.train.min_workers, f"at most train.workers, {self.train.workers}"
            )
        if self.optim.warmup_steps >= self.train.steps:
            raise impossible(
                "optim.warmup_steps", self.optim.warmup_steps, f"fewer than train.steps, {self.train.steps}"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """Returns the settings that decide what is learned, by dotted key; the others may change as a run goes on."""
        tree = {section: part for section, part in self.model_dump(mode="json").items() if section not in CHANGEABLE}
        flat = {f"{section}.{name}": value for section, part in tree.items() for name, value in part.items()}
        return {key: value for key, value in flat.items() if key not in CHANGEABLE}

    @property
    def digest(self) -> str:
        """Hash over the decisive settings."""
        return hashlib.blake2b(json.dumps(self.decisive(), sort_keys=True).encode(), digest_size=8).hexdigest()
