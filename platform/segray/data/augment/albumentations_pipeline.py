"""Training crops from a configurable albumentations pipeline, as a replacement for the published recipe."""

import difflib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.crops.transforms import CropSizeError

from segray.config import DataConfig
from segray.config.data import Transform
from segray.core.errors import ConfigError, DataError
from segray.data.augment.colour import Distortion, apply_distortion, sample_distortion
from segray.data.augment.crop import (
    PAD_COLOUR,
    CropRule,
    Window,
    crop_image,
    crop_mask,
    require_same_size,
    sample_window,
)
from segray.data.augment.recipe import crop_rule_from_config
from segray.data.images import Mask, Pixels, decode_image, decode_mask
from segray.data.resize import resize_image, resize_mask, scale_to_short_side

TRIALS = 8
QUICK_TRIALS = 2
MAX_LISTED = 20
UNSUPPORTED = {
    "Morphological": "it grows and shrinks class ids as if they were grey values",
    "Lambda": "a function has no name in a config",
    "Mosaic": "it needs other rows; use data.mosaic",
}
COMPOSITIONS = ("OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf")


class AlbumentationsPipeline:
    """Makes a training crop of a row with the pipeline of `data.augment`; the call matches `SegFormerRecipe`.

    If `data.short_side` is set, images are resized to it before the first transform. Instances are thread-safe.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._config, self._ignore_id = config, ignore_id
        self._of_thread = threading.local()

    def __call__(self, image: bytes, mask: bytes, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of the row.

        Raises:
            DataError: the bytes are not an image or a mask, a transform fails, or the result has the wrong size.
        """
        pixels, ids = decode_image(image), decode_mask(mask)
        require_same_size(pixels, ids)
        return self.crop(pixels, ids, seed)

    def crop(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of decoded pixels (H, W, 3) and ids (H, W).

        Raises:
            DataError: a transform fails, or the result has the wrong size.
        """
        compose = self._compose()
        compose.set_random_seed(seed)
        try:
            made = compose(image=self._sized(image, resize_image), mask=self._sized(mask, resize_mask))
        except Exception as error:  # user-selected transforms may raise arbitrary exceptions
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(f"data.augment cannot work on an image of {size}: {_first_line(error)}.") from error
        self._check(made["image"], made["mask"], mask)
        return made["image"], made["mask"]

    def _sized(self, pixels: Any, resize: Callable[[Any, int, int], Any]) -> Any:
        short = self._config.short_side
        return (
            pixels if short is None else resize(pixels, *scale_to_short_side(pixels.shape[0], pixels.shape[1], short))
        )

    def _compose(self) -> A.Compose:
        # A Compose holds the random state of the current row, so each thread needs its own.
        if not hasattr(self._of_thread, "compose"):
            self._of_thread.compose = build_compose(self._config, self._ignore_id)
        return self._of_thread.compose

    def _check(self, image: Pixels, ids: Mask, mask: Mask) -> None:
        crop = self._config.crop
        if image.shape != (crop, crop, 3) or ids.shape != (crop, crop):
            raise DataError(
                f"data.augment makes {image.shape[1]}x{image.shape[0]} of an image of "
                f"{mask.shape[1]}x{mask.shape[0]}; expected {crop}x{crop} (data.crop); end it with a crop, after "
                "PadIfNeeded for small images, or with ScaledCrop, which does both."
            )
        if image.dtype != np.uint8 or ids.dtype != mask.dtype:
            raise DataError(
                f"data.augment makes an image of {image.dtype} and a mask of {ids.dtype}; expected uint8 and "
                f"{mask.dtype}; leave normalising to the model."
            )


def validate_pipeline(config: DataConfig) -> None:
    """Builds the pipeline and applies it to a blank image of twice the crop size.

    A result of the wrong size is accepted here, because this image may be too small for the pipeline.

    Raises:
        ConfigError: a transform or argument does not exist, or a transform fails.
    """
    try:
        _try(config, 2 * config.crop, 2 * config.crop, 255, QUICK_TRIALS)
    except DataError as error:
        if not isinstance(error.__cause__, CropSizeError):
            raise ConfigError(str(error)) from error


def validate_for_size(config: DataConfig, height: int, width: int, ignore_id: int) -> None:
    """Applies the pipeline to a blank image of the given size.

    Raises:
        ConfigError: the result is not a valid crop.
    """
    try:
        _try(config, height, width, ignore_id, TRIALS)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _try(config: DataConfig, height: int, width: int, ignore_id: int, trials: int) -> None:
    pipeline = AlbumentationsPipeline(config, ignore_id)
    dtype = np.uint8 if ignore_id <= 255 else np.uint16
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), dtype)
    mask[::2] = 1
    for seed in range(trials):
        pipeline.crop(image, mask, seed)


def build_compose(config: DataConfig, ignore_id: int) -> A.Compose:
    """Builds the albumentations pipeline of `data.augment`.

    Borders that a transform fills get the pad colour in the image and the ignore id in the mask.

    Raises:
        ConfigError: a transform or argument does not exist, or an argument has an invalid value.
    """
    return A.Compose(_all(config.augment or (), config, ignore_id))


def _all(transforms: Iterable[Transform], config: DataConfig, ignore_id: int) -> list[Any]:
    return [_one(*_parts(transform), config, ignore_id) for transform in transforms]


def _parts(transform: Transform) -> tuple[str, dict[str, Any]]:
    if isinstance(transform, str):
        return transform, {}
    if isinstance(transform, Mapping) and len(transform) == 1:
        name, arguments = next(iter(transform.items()))
        if arguments is None or isinstance(arguments, Mapping):
            return name, dict(arguments or {})
    raise ConfigError(f"data.augment holds {transform!r}; expected NAME, or NAME: {{argument: value, ...}}.")


def _one(name: str, arguments: dict[str, Any], config: DataConfig, ignore_id: int) -> Any:
    if name in UNSUPPORTED:
        raise ConfigError(f"data.augment names {name}, which segmentation cannot use: {UNSUPPORTED[name]}.")
    if name in _OWN:
        _check_arguments(name, arguments, _OWN[name])
        return _constructed(name, _OWN[name], arguments | {"rule": crop_rule_from_config(config, ignore_id)})
    known = _known()
    if name not in known:
        raise ConfigError(f"data.augment names {name}, which is no transform{_nearest(name, [*known, *_OWN])}")
    _check_arguments(name, arguments, known[name])
    if name in COMPOSITIONS:
        inner = arguments.get("transforms")
        if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
            raise ConfigError(f"data.augment: {name} needs transforms, a list like data.augment itself.")
        arguments = arguments | {"transforms": _all(inner, config, ignore_id)}
    return _constructed(name, known[name], _filling(known[name], ignore_id) | arguments)


def _known() -> dict[str, type]:
    """Returns the image transforms of albumentations by name."""
    kinds = (A.ImageOnlyTransform, A.DualTransform)
    found = {name: kind for name, kind in vars(A).items() if inspect.isclass(kind) and issubclass(kind, kinds)}
    usable = {name: kind for name, kind in found.items() if kind not in kinds and not name.endswith("3D")}
    return usable | {name: getattr(A, name) for name in COMPOSITIONS}


def _check_arguments(name: str, arguments: Mapping[str, Any], kind: type) -> None:
    """Rejects arguments that albumentations would ignore with a warning, and interpolation of masks."""
    known = [key for key in inspect.signature(kind).parameters if key != "rule"]
    for key in arguments:
        if key not in known:
            raise ConfigError(f"data.augment: {name} has no argument {key}{_nearest(key, known)}")
    if arguments.get("mask_interpolation", cv2.INTER_NEAREST) not in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        raise ConfigError(
            f"data.augment: {name} has mask_interpolation {arguments['mask_interpolation']}, which mixes class ids; "
            f"expected nearest, {cv2.INTER_NEAREST}."
        )


def _filling(kind: type, ignore_id: int) -> dict[str, Any]:
    """Returns the fill arguments for a transform that would otherwise fill mask borders with class 0."""
    defaults = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
    if defaults.get("fill_mask") not in {0}:
        return {}
    # MaskDropout accepts only one number for all channels.
    takes_colour = "fill" in defaults and kind is not A.MaskDropout
    return {"fill_mask": ignore_id} | ({"fill": PAD_COLOUR} if takes_colour else {})


def _constructed(name: str, kind: type, arguments: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # performance and deprecation warnings
            warnings.filterwarnings("error", r"Argument\(s\)")  # albumentations warns about ignored arguments
            return kind(**arguments)
    except (ValueError, TypeError, UserWarning) as error:
        raise ConfigError(f"data.augment: {name} cannot be made: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    """Returns the main line of an error message; for a multi-line pydantic message, the field and the fault."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    said = f"{lines[1]}: {lines[2].split(' [type=')[0]}" if "validation error" in lines[0] else lines[0]
    return said.rstrip(".")


def _nearest(name: str, known: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {by_lower[close[0]]}?"
    few = len(by_lower) <= MAX_LISTED
    return f"; expected {', '.join(by_lower.values()) if few else 'a name of albumentations.ai/docs'}."


class ScaledCrop(A.DualTransform):  # type: ignore[misc]
    """Random scale and crop of the recipe, as an albumentations transform configured by the `data` settings."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)
        # The pipeline resizes to the short side before the first transform.
        self.rule = CropRule(**{**vars(rule), "short_side": None})

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Samples the crop window."""
        return {"window": sample_window(self.rule, data["mask"], self.py_random)}

    def apply(self, img: Pixels, window: Window, **_: Any) -> Pixels:
        """Returns the crop of an image."""
        if img.dtype != np.uint8:
            raise ValueError(f"ScaledCrop is given an image of {img.dtype}; expected uint8; the model normalises")
        return crop_image(self.rule, window, img)

    def apply_to_mask(self, mask: Mask, window: Window, **_: Any) -> Mask:
        """Returns the crop of a mask."""
        return crop_mask(self.rule, window, mask)


class PhotometricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Photometric distortion of the recipe, as an albumentations transform."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Samples the distortion."""
        return {"distortion": sample_distortion(self.py_random)}

    def apply(self, img: Pixels, distortion: Distortion, **_: Any) -> Pixels:
        """Returns the distorted image."""
        return apply_distortion(img, distortion)


class ResizeToMultiple(A.DualTransform):  # type: ignore[misc]
    """Resizes images and masks so that both sides are rounded up to a multiple of `multiple`."""

    def __init__(self, rule: CropRule, multiple: int = 32, p: float = 1.0) -> None:
        super().__init__(p=p)
        if multiple < 1:
            raise ValueError(f"multiple is {multiple}; expected at least 1")
        self.multiple = multiple

    def _size(self, pixels: Any) -> tuple[int, int]:
        height, width = (-(-side // self.multiple) * self.multiple for side in pixels.shape[:2])
        return height, width

    def apply(self, img: Pixels, **_: Any) -> Pixels:
        """Returns the resized image."""
        return resize_image(img, *self._size(img))

    def apply_to_mask(self, mask: Mask, **_: Any) -> Mask:
        """Returns the resized mask."""
        return resize_mask(mask, *self._size(mask))


_OWN: dict[str, type] = {kind.__name__: kind for kind in (ScaledCrop, PhotometricDistortion, ResizeToMultiple)}
