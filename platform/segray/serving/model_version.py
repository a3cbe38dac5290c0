"""Model versions: serializable files, and the loaded and verified model."""

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from segray.config import ServeConfig
from segray.core.classes import Classes
from segray.core.errors import CheckpointError
from segray.data.images import Mask, Pixels
from segray.data.normalize import decode_upright
from segray.data.preprocess import model_input_size
from segray.inference.segment import count_windows
from segray.inference.serving_predictor import ServingPredictor
from segray.models import checkpoint
from segray.models.plugins import require_allowed_modules
from segray.serving.requests import ResponseOptions
from segray.serving.responses import encode_png, encode_png_image
from segray.serving.speed import ModelSpeed, Speed, find_max_pixels, measure_seconds
from segray.tracking.integrity import CHECKPOINT_FILES

BATCH_PIXELS = 2**24
"""Maximum number of pixels of all images in a forward pass, which bounds its memory."""
MAX_BATCH_S = 0.25
"""Maximum estimated duration of a forward pass of several images in seconds, for which other clients wait."""


@dataclass(frozen=True)
class ModelFiles:
    """Files of a fetched version.

    Attributes:
        model: name of the registered model.
        number: version number.
        files: content of the checkpoint files, by file name.
        tags: tags of the version.
    """

    model: str
    number: str
    files: dict[str, bytes] = field(repr=False)
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dir(cls, model: str, number: str, folder: Path, tags: dict[str, str]) -> "ModelFiles":
        """Reads a version from a checkpoint folder."""
        return cls(model, number, {name: (folder / name).read_bytes() for name in CHECKPOINT_FILES}, tags)

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each file, by file name."""
        return {name: sha256(content).hexdigest() for name, content in self.files.items()}

    def to_dir(self, folder: Path) -> None:
        """Writes the checkpoint files into a folder."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


class LoadedModel:
    """Loaded version that segments images.

    Args:
        version: files of the version.
        settings: serving configuration.
        device: "cpu" or "cuda".

    Attributes:
        number: version number.
        model: name of the registered model.
        classes: classes of the mask ids.
        crop_pixels: number of pixels of a training crop.
        max_image_pixels: number of pixels up to which an image is segmented within `serve.request_timeout_s`,
            according to a measurement on this machine.

    Raises:
        CheckpointError: the checkpoint is incomplete, or the model does not produce valid masks.
        ModelError: the model cannot be built from its configuration.
        RegistryError: the version names a plug-in that is not allowed.
    """

    number: str
    model: str
    classes: Classes
    crop_pixels: int
    max_image_pixels: int

    def __init__(self, version: ModelFiles, settings: ServeConfig, device: str) -> None:
        self.number, self.model, self._tags = version.number, version.model, version.tags
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            version.to_dir(folder)
            require_allowed_modules(checkpoint.load_config(folder), f"version {version.number} of {version.model}")
            self._meta = checkpoint.load_meta(folder)
            self._predictor = ServingPredictor(folder, device, settings)
        self.classes = self._predictor.classes
        self._settings = settings
        self._thread = threading.local()
        self._predictor.add_layer_hook(self._check)
        self.crop_pixels = self._predictor.config.data.crop**2
        self._warm_up(device)
        self.set_speed(self.measure_speed())

    def predict(
        self, size: tuple[int, int], images: Sequence[Pixels], check: Callable[[], None] | None = None
    ) -> list[Mask]:
        """Segments images (H, W, 3) of one size into masks (H, W) with the version's `Predictor`.

        Images with more than `serve.slide_above_pixels` pixels are segmented with sliding windows.

        Args:
            size: (H, W) of the images.
            images: RGB images.
            check: function that is called often, before each layer. Its exceptions end the computation.
        """
        if check is None:
            return self._predictor.predict_batch(images)
        self._thread.check = check
        try:
            return self._predictor.predict_batch(images, replace(self._predictor.mode(size), before_step=check))
        finally:
            self._thread.check = None

    def measure_speed(self) -> ModelSpeed:
        """Measures the speed of the codecs and of the model on two sizes of images of noise, the slowest to decode."""
        side = self._predictor.config.data.crop
        pixel, small, large = (_noise(length) for length in (1, side, 2 * side))
        encoded, mask = encode_png_image(small), np.zeros((side, side), np.uint8)
        options = ResponseOptions("overlay")

        def run_codecs() -> None:
            decode_upright(encoded, "the image", small.size)
            encode_png(small, mask, self.classes, options)

        small_s, large_s = (
            measure_seconds(lambda image=image: self._predictor.predict_batch([image], self._predictor.full_image))  # type: ignore[misc]
            for image in (small, large)
        )
        return ModelSpeed(
            codec=Speed(measure_seconds(run_codecs) / side**2),
            forward=Speed.fit(side**2, small_s, 4 * side**2, large_s),
            window_s=measure_seconds(lambda: self._predictor.predict_batch([small], self._predictor.sliding)),
            smallest_s=measure_seconds(lambda: self._predictor.predict_batch([pixel])),
        )

    def set_speed(self, speed: ModelSpeed) -> None:
        """Sets the measured speed, on which the estimates and `max_image_pixels` depend."""
        self._speed = speed
        self.max_image_pixels = find_max_pixels(
            lambda side: self.estimate_seconds((side, side)),
            self._settings.request_timeout_s,
            self._settings.max_image_pixels,
        )

    def estimate_seconds(self, size: tuple[int, int]) -> float:
        """Returns the estimated duration of decoding, segmenting and encoding an image of size (H, W)."""
        data, pixels, mode = self._predictor.config.data, prod(size), self._predictor.mode(size)
        speed = self._speed
        input_size = model_input_size(*size, data.short_side, mode.size_multiple)
        if mode.crop is None:
            predict_s = speed.forward.seconds(max(pixels, prod(input_size)))
        else:
            num_windows = count_windows(input_size, mode.crop, mode.stride)
            predict_s = speed.window_s * max(num_windows, pixels // mode.crop**2)
        return max(speed.codec.seconds(pixels) + predict_s, speed.smallest_s)

    def max_batch_size(self, size: tuple[int, int]) -> int:
        """Returns the maximum number of images of size (H, W) in a forward pass."""
        by_time = int(MAX_BATCH_S / self.estimate_seconds(size))
        return max(1, min(self._settings.max_batch_size, BATCH_PIXELS // prod(size), by_time))

    def info(self) -> dict[str, Any]:
        """Returns the public description of the version."""
        config = self._predictor.config
        return {
            "model": self.model,
            "version": self.number,
            "variant": config.model.variant,
            "step": self._meta.step,
            "classes": [
                {"id": class_id, "name": name, "colour": list(colour)}
                for class_id, (name, colour) in enumerate(zip(self.classes.names, self.classes.palette, strict=True))
            ],
            "ignore_id": self.classes.ignore_id,
            "metrics": self._meta.metrics,
            "tags": {key: value for key, value in self._tags.items() if len(value) < 200},
            "dataset_digest": self._meta.dataset_digest,
            "max_image_pixels": self.max_image_pixels,
        }

    def _check(self) -> None:
        """Calls the function that the `predict` call of this thread was given."""
        if (check := getattr(self._thread, "check", None)) is not None:
            check()

    def _warm_up(self, device: str) -> None:
        """Segments random images of the crop size to warm up the model and to verify its masks.

        Raises:
            CheckpointError: a mask has the wrong shape or contains an unknown class id.
        """
        side = self._predictor.config.data.crop
        image = _noise(side)
        count = min(self._settings.max_batch_size, max(1, BATCH_PIXELS // side**2)) if device == "cuda" else 1
        for mask in self.predict((side, side), [image] * count):
            if mask.shape != (side, side) or mask.max() >= self.classes.num_classes:
                raise CheckpointError(
                    f"version {self.number} of {self.model} returns a mask of shape {mask.shape} with class ids up to "
                    f"{mask.max()}; expected shape {(side, side)} and ids below {self.classes.num_classes}."
                )


def _noise(side: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
