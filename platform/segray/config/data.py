"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config import parsers
from segray.config.base import Fraction, Positive, Settings
from segray.config.parsers import invalid_setting

Transform = str | dict[str, dict[str, Any] | None]
"""NAME, or NAME: {argument: value, ...}."""
Transforms = tuple[Transform, ...] | None

CROP_MULTIPLE = 32


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
    augment: Annotated[Transforms, BeforeValidator(parsers.parse_transforms)] = None
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
    def _check(self) -> Self:
        if self.crop % CROP_MULTIPLE:
            use = max(CROP_MULTIPLE, round(self.crop / CROP_MULTIPLE) * CROP_MULTIPLE)
            raise invalid_setting("data.crop", self.crop, f"a multiple of {CROP_MULTIPLE}", f"use {use}")
        if self.scale_min > self.scale_max:
            raise invalid_setting("data.scale_min", self.scale_min, f"at most data.scale_max, {self.scale_max}")
        return self
