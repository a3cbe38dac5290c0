"""Any albumentations pipeline, by names and arguments from the settings, in place of the published recipe."""

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
    """Makes a training crop of a row with the pipeline of `data.augment`; see `Recipe` for the call.

    Images have the short side of the settings, if there is one, before the first transform. Safe to call from
    many threads.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._config, self._ignore_id = config, ignore_id
        self._of_thread = threading.local()

    def __call__(self, image: bytes, mask: bytes, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of the row.

        Raises:
            DataError: the bytes are no image or no mask, a transform fails, or no crop of the right size comes out.
        """
        pixels, ids = decode_image(image), decode_mask(mask)
        require_same_size(pixels, ids)
        return self.crop(pixels, ids, seed)

    def crop(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        """Returns the crop of decoded pixels (H, W, 3) and ids (H, W).

        Raises:
            DataError: as above.
        """
        compose = self._compose()
        compose.set_random_seed(seed)
        try:
            made = compose(image=self._sized(image, resize_image), mask=self._sized(mask, resize_mask))
        except Exception as error:  # a transform of the user's choice may raise anything
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
        # A Compose holds the random state of the row at hand, so threads must not share one.
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
    """Builds the pipeline, and tries it on an image of twice the crop, which may be too small for it.

    Raises:
        ConfigError: a transform or argument does not exist, or what comes out is no crop.
    """
    try:
        _try(config, 2 * config.crop, 2 * config.crop, 255, QUICK_TRIALS)
    except DataError as error:
        if not isinstance(error.__cause__, CropSizeError):
            raise ConfigError(str(error)) from error


def validate_for_size(config: DataConfig, height: int, width: int, ignore_id: int) -> None:
    """Tries the pipeline on an image of a given size.

    Raises:
        ConfigError: no crop comes out.
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
    """Returns the albumentations pipeline of `data.augment`.

    Borders that a transform fills become the pad colour in the image and the ignore id in the mask.

    Raises:
        ConfigError: a transform or argument does not exist, or has a value it cannot have.
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
    """Returns albumentations' transforms for images, by name."""
    kinds = (A.ImageOnlyTransform, A.DualTransform)
    found = {name: kind for name, kind in vars(A).items() if inspect.isclass(kind) and issubclass(kind, kinds)}
    usable = {name: kind for name, kind in found.items() if kind not in kinds and not name.endswith("3D")}
    return usable | {name: getattr(A, name) for name in COMPOSITIONS}


def _check_arguments(name: str, arguments: Mapping[str, Any], kind: type) -> None:
    """Refuses arguments that albumentations would only warn of, and masks that would be interpolated."""
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
    """Returns what fills the borders, for a transform that would otherwise fill masks with class 0."""
    defaults = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
    if defaults.get("fill_mask") not in {0}:
        return {}
    # MaskDropout takes one number for all channels.
    takes_colour = "fill" in defaults and kind is not A.MaskDropout
    return {"fill_mask": ignore_id} | ({"fill": PAD_COLOUR} if takes_colour else {})


def _constructed(name: str, kind: type, arguments: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a transform is slow, or has a successor
            warnings.filterwarnings("error", r"Argument\(s\)")  # how albumentations says that it ignores some
            return kind(**arguments)
    except (ValueError, TypeError, UserWarning) as error:
        raise ConfigError(f"data.augment: {name} cannot be made: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    """Returns what an error says; pydantic's are lines of a count, a field, its fault and a link."""
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
    """The recipe's random scale and crop, as the settings of `data` say, to stand among other transforms."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)
        # The pipeline has set the short side already.
        self.rule = CropRule(**{**vars(rule), "short_side": None})

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Returns the window."""
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
    """The recipe's photometric distortion, to stand among other transforms."""

    def __init__(self, rule: CropRule, p: float = 1.0) -> None:
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Returns the distortion."""
        return {"distortion": sample_distortion(self.py_random)}

    def apply(self, img: Pixels, distortion: Distortion, **_: Any) -> Pixels:
        """Returns the distorted image."""
        return apply_distortion(img, distortion)


class ResizeToMultiple(A.DualTransform):  # type: ignore[misc]
    """Rounds both sides up to a multiple of `multiple`, and resizes to that."""

    def __init__(self, rule: CropRule, multiple: int = 32, p: float = 1.0) -> None:
        super().__init__(p=p)
        if multiple < 1:
            raise ValueError(f"multiple is {multiple}; expected at least 1")
        self.multiple = multiple

    def _size(self, pixels: Any) -> tuple[int, int]:
        height, width = (-(-side // self.multiple) * self.multiple for side in pixels.shape[:2])
        return height, width

    def apply(self, img: Pixels, **_: Any) -> Pixels:
        """Returns the image at its new size."""
        return resize_image(img, *self._size(img))

    def apply_to_mask(self, mask: Mask, **_: Any) -> Mask:
        """Returns the mask at its new size."""
        return resize_mask(mask, *self._size(mask))


_OWN: dict[str, type] = {kind.__name__: kind for kind in (ScaledCrop, PhotometricDistortion, ResizeToMultiple)}
