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
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import ConfigError, DataError
from segray.data.augment.crop import PAD_COLOUR, require_same_size
from segray.data.augment.custom_transforms import CUSTOM_TRANSFORMS
from segray.data.augment.recipe import crop_rule_from_config
from segray.data.images import Mask, Pixels, decode_image, decode_mask, resize_image, resize_mask, scale_to_short_side

TRIALS = 8
QUICK_TRIALS = 2
MAX_LISTED = 20
UNSUPPORTED = {
    "Morphological": "it treats class ids as grey values",
    "Lambda": "a function cannot be configured by name",
    "Mosaic": "it needs several rows; use data.mosaic_prob",
}
COMPOSITIONS = ("OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf")


class AlbumentationsPipeline:
    """Makes a training crop of a row with the pipeline of `data.augment`; the call matches `SegFormerRecipe`.

    If `data.short_side` is set, images are resized to it before the first transform. Instances are thread-safe.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._config, self._ignore_id = config, ignore_id
        self._thread_local = threading.local()

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
            result = compose(image=self._resize(image, resize_image), mask=self._resize(mask, resize_mask))
        except Exception as error:  # user-selected transforms may raise arbitrary exceptions
            if is_out_of_memory(error):
                raise
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(f"data.augment fails on an image of {size}: {_summarize(error)}.") from error
        self._check_crop(result["image"], result["mask"], mask)
        return result["image"], result["mask"]

    def _resize(self, pixels: Any, resize: Callable[[Any, int, int], Any]) -> Any:
        if self._config.short_side is None:
            return pixels
        height, width = scale_to_short_side(pixels.shape[0], pixels.shape[1], self._config.short_side)
        return resize(pixels, height, width)

    def _compose(self) -> A.Compose:
        # A Compose holds the random state of the current row, so each thread needs its own.
        if not hasattr(self._thread_local, "compose"):
            self._thread_local.compose = build_compose(self._config, self._ignore_id)
        return self._thread_local.compose

    def _check_crop(self, image: Pixels, ids: Mask, mask: Mask) -> None:
        crop = self._config.crop
        if image.shape != (crop, crop, 3) or ids.shape != (crop, crop):
            raise DataError(
                f"data.augment returns {image.shape[1]}x{image.shape[0]} for an image of "
                f"{mask.shape[1]}x{mask.shape[0]}; expected {crop}x{crop} (data.crop); end it with a crop, preceded by "
                "PadIfNeeded for small images, or with ScaledCrop, which pads and crops."
            )
        if image.dtype != np.uint8 or ids.dtype != mask.dtype:
            raise DataError(
                f"data.augment returns a {image.dtype} image and a {ids.dtype} mask; expected uint8 and {mask.dtype}; "
                "remove the normalization, because the model normalizes."
            )


def validate_pipeline(config: DataConfig) -> None:
    """Builds the pipeline and applies it to a blank image of twice the crop size.

    A result of the wrong size is accepted here, because this image may be too small for the pipeline.

    Raises:
        ConfigError: a transform or argument does not exist, or a transform fails.
    """
    try:
        _run_trials(config, 2 * config.crop, 2 * config.crop, 255, QUICK_TRIALS)
    except DataError as error:
        if not isinstance(error.__cause__, CropSizeError):
            raise ConfigError(str(error)) from error


def validate_for_size(config: DataConfig, height: int, width: int, ignore_id: int) -> None:
    """Applies the pipeline to a blank image of the given size.

    Raises:
        ConfigError: the result is not a valid crop.
    """
    try:
        _run_trials(config, height, width, ignore_id, TRIALS)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _run_trials(config: DataConfig, height: int, width: int, ignore_id: int, trials: int) -> None:
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
    return A.Compose(_build_all(config.augment or (), config, ignore_id))


def _build_all(transforms: Iterable[Transform], config: DataConfig, ignore_id: int) -> list[Any]:
    return [_build_transform(*_parse_transform(transform), config, ignore_id) for transform in transforms]


def _parse_transform(transform: Transform) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments of a transform."""
    if isinstance(transform, str):
        return transform, {}
    if isinstance(transform, Mapping) and len(transform) == 1:
        name, arguments = next(iter(transform.items()))
        if arguments is None or isinstance(arguments, Mapping):
            return name, dict(arguments or {})
    raise ConfigError(f"data.augment contains {transform!r}; expected NAME, or NAME: {{argument: value, ...}}.")


def _build_transform(name: str, arguments: dict[str, Any], config: DataConfig, ignore_id: int) -> Any:
    if name in UNSUPPORTED:
        raise ConfigError(f"data.augment contains {name}, which segray does not support: {UNSUPPORTED[name]}.")
    if name in CUSTOM_TRANSFORMS:
        custom = CUSTOM_TRANSFORMS[name]
        _check_arguments(name, arguments, custom)
        return _construct(name, custom, arguments | {"rule": crop_rule_from_config(config, ignore_id)})
    available = _available_transforms()
    if name not in available:
        hint = _valid_names_hint(name, [*available, *CUSTOM_TRANSFORMS])
        raise ConfigError(f"data.augment contains {name}, which is not a transform{hint}")
    _check_arguments(name, arguments, available[name])
    if name in COMPOSITIONS:
        inner = arguments.get("transforms")
        if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
            raise ConfigError(f"data.augment: {name} needs the argument transforms, a list of transforms.")
        arguments = arguments | {"transforms": _build_all(inner, config, ignore_id)}
    return _construct(name, available[name], _fill_arguments(available[name], ignore_id) | arguments)


def _available_transforms() -> dict[str, type]:
    """Returns the image transforms of albumentations by name."""
    bases = (A.ImageOnlyTransform, A.DualTransform)
    transforms = {
        name: value
        for name, value in vars(A).items()
        if inspect.isclass(value) and issubclass(value, bases) and value not in bases and not name.endswith("3D")
    }
    return transforms | {name: getattr(A, name) for name in COMPOSITIONS}


def _check_arguments(name: str, arguments: Mapping[str, Any], transform: type) -> None:
    """Rejects arguments that albumentations would ignore with a warning, and interpolation of masks."""
    parameters = [parameter for parameter in inspect.signature(transform).parameters if parameter != "rule"]
    for argument in arguments:
        if argument not in parameters:
            hint = _valid_names_hint(argument, parameters)
            raise ConfigError(f"data.augment: {name} has no argument {argument}{hint}")
    if arguments.get("mask_interpolation", cv2.INTER_NEAREST) not in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        raise ConfigError(
            f"data.augment: {name} has mask_interpolation {arguments['mask_interpolation']}, which mixes class ids; "
            f"expected {cv2.INTER_NEAREST} (nearest)."
        )


def _fill_arguments(transform: type, ignore_id: int) -> dict[str, Any]:
    """Returns the fill arguments for a transform that would otherwise fill mask borders with class 0."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(transform).parameters.items()}
    if defaults.get("fill_mask") not in {0}:
        return {}
    # MaskDropout accepts only one number for all channels.
    takes_colour = "fill" in defaults and transform is not A.MaskDropout
    return {"fill_mask": ignore_id} | ({"fill": PAD_COLOUR} if takes_colour else {})


def _construct(name: str, transform: type, arguments: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # performance and deprecation warnings
            warnings.filterwarnings("error", r"Argument\(s\)")  # albumentations warns about ignored arguments
            return transform(**arguments)
    except (ValueError, TypeError, UserWarning) as error:
        raise ConfigError(f"data.augment: {name} cannot be built: {_summarize(error)}.") from error


def _summarize(error: Exception) -> str:
    """Returns the main line of an error message; for a multi-line pydantic message, the field and the reason."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    summary = f"{lines[1]}: {lines[2].split(' [type=')[0]}" if "validation error" in lines[0] else lines[0]
    return summary.rstrip(".")


def _valid_names_hint(name: str, valid_names: Iterable[str]) -> str:
    """Returns the end of an error message: the closest valid name, or the valid names if none is close."""
    by_lower_case = {valid_name.lower(): valid_name for valid_name in valid_names}
    close = difflib.get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {by_lower_case[close[0]]}?"
    if len(by_lower_case) <= MAX_LISTED:
        return f"; expected {', '.join(by_lower_case.values())}."
    return "; expected a name from albumentations.ai/docs."
