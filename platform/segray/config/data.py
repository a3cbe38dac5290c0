"""Settings of the training data and its augmentation."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from segray.config.fields import Fraction, Positive, Settings, from_yaml, invalid_setting, is_name_entry


def parse_transforms(value: object) -> object:
    """Returns the list of transforms given in a file or flag."""
    expected = "a list of NAME or NAME: {argument: value}, e.g. '[ScaledCrop, {GaussNoise: {p: 0.2}}]'"
    transforms = from_yaml("data.augment", value, expected)
    if transforms is None:
        return None
    if not isinstance(transforms, list | tuple):
        raise invalid_setting("data.augment", value, expected)
    if not all(is_name_entry(transform, (dict, type(None))) for transform in transforms):
        raise invalid_setting("data.augment", value, expected)
    return transforms


Transform = str | dict[str, dict[str, Any] | None]
"""A transform: NAME, or NAME: {argument: value, ...}."""
Transforms = tuple[Transform, ...] | None

CROP_MULTIPLE = 32


class DataConfig(Settings):
    """Dataset, sampling and augmentation."""

    root: str = "data/demo"
    """Folder or URI of a dataset written by the command prepare."""
    train_split: str = "train"
    """Split used for training."""
    val_split: str = "val"
    """Split used for validation."""
    short_side: Positive | None = None
    """Length in px to which the short side of every image is resized first. The long side gets at most four times this
    length. Defaults to the original size."""
    crop: Positive = 512
    """Side of the square training crop in px. Must be a multiple of 32."""
    scale_min: Annotated[float, Field(gt=0)] = 0.5
    """Minimum random scale factor."""
    scale_max: Annotated[float, Field(gt=0)] = 2.0
    """Maximum random scale factor."""
    cat_max_ratio: Fraction = 0.75
    """Maximum fraction of one class in a crop. Crops above it are sampled again, up to ten times."""
    flip_prob: Fraction = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Randomly distort brightness, contrast, saturation and hue."""
    class_crop_prob: Fraction = 0.0
    """Fraction of the crops that contain a pixel of a randomly chosen class of the image."""
    augment: Annotated[Transforms, BeforeValidator(parse_transforms)] = None
    """Albumentations transforms that replace the default augmentation: a list of NAME or NAME: {argument: value}."""
    mosaic_prob: Fraction = 0.0
    """Probability that a crop is a mosaic of four images."""
    cut_mix_prob: Fraction = 0.0
    """Probability that a box from the crop of another image is pasted into a crop."""
    sampler: Literal["all", "rare_class", "repeat"] = "all"
    """Images per epoch: all (each once), rare_class (rare classes more likely), or repeat (rare classes repeated)."""
    rare_class_temperature: Annotated[float, Field(gt=0)] = 0.01
    """Temperature of the sampler rare_class. Lower values favor the rarest classes more strongly."""
    repeat_threshold: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Threshold of the sampler repeat: a class is rare if a smaller fraction of the images contains it."""
    augment_on: Literal["worker", "cluster"] = "worker"
    """Where crops are made: worker (threads of the training workers) or cluster (Ray tasks on free CPUs)."""
    bad_rows: Literal["fail", "skip"] = "fail"
    """Handling of images that cannot be decoded: fail (end the run) or skip (leave them out and count them)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop % CROP_MULTIPLE:
            use = max(CROP_MULTIPLE, round(self.crop / CROP_MULTIPLE) * CROP_MULTIPLE)
            raise invalid_setting("data.crop", self.crop, f"a multiple of {CROP_MULTIPLE}", f"use {use}")
        if self.scale_min > self.scale_max:
            raise invalid_setting("data.scale_min", self.scale_min, f"at most data.scale_max, {self.scale_max}")
        return self
