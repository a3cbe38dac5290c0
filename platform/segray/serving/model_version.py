"""Model versions: serializable files, and the loaded and verified model."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from segray.config import Config, ServeConfig
from segray.core.classes import Classes
from segray.core.errors import CheckpointError, ConfigError
from segray.data.images import Mask, Pixels
from segray.inference.predictor import Predictor
from segray.inference.segment import InferenceConfig
from segray.models import checkpoint
from segray.tracking.integrity import CHECKPOINT_FILES

BATCH_PIXELS = 2**24
"""Maximum number of pixels of all images in a forward pass, which bounds its memory."""


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

    Raises:
        CheckpointError: the checkpoint is incomplete, or the model does not produce valid masks.
        ModelError: the model cannot be built from its configuration.
    """

    number: str
    model: str
    classes: Classes

    def __init__(self, version: ModelFiles, settings: ServeConfig, device: str) -> None:
        self.number, self.model, self._tags = version.number, version.model, version.tags
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            version.to_dir(folder)
            trained = checkpoint.load_config(folder)
            self._meta = checkpoint.load_meta(folder)
            self._predictor = Predictor(folder, device, trained.with_eval_overrides({"precision": settings.precision}))
        self.classes = self._predictor.classes
        self._settings = settings
        self._inference = InferenceConfig.from_config(self._predictor.config)
        self._sliding = InferenceConfig.from_config(_sliding_config(self._predictor.config))
        self._warm_up(device)

    def predict(self, size: tuple[int, int], images: Sequence[Pixels]) -> list[Mask]:
        """Segments images (H, W, 3) of one size into masks (H, W) with the version's `Predictor`.

        Images with more than `serve.slide_above_pixels` pixels are segmented with sliding windows.
        """
        is_large = size[0] * size[1] > self._settings.slide_above_pixels
        return self._predictor.predict_batch(images, self._sliding if is_large else self._inference)

    def max_batch_size(self, size: tuple[int, int]) -> int:
        """Returns the maximum number of images of size (H, W) in a forward pass."""
        return max(1, min(self._settings.max_batch_size, BATCH_PIXELS // (size[0] * size[1])))

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
        }

    def _warm_up(self, device: str) -> None:
        """Segments random images of the crop size to warm up the model and to verify its masks.

        Raises:
            CheckpointError: a mask has the wrong shape or contains an unknown class id.
        """
        side = self._predictor.config.data.crop
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        count = self.max_batch_size((side, side)) if device == "cuda" else 1
        for mask in self.predict((side, side), [image] * count):
            if mask.shape != (side, side) or mask.max() >= self.classes.num_classes:
                raise CheckpointError(
                    f"version {self.number} of {self.model} returns a mask of shape {mask.shape} with class ids up to "
                    f"{mask.max()}; expected shape {(side, side)} and ids below {self.classes.num_classes}."
                )


def _sliding_config(config: Config) -> Config:
    """Returns the configuration for large images."""
    try:
        return config.with_eval_overrides({"mode": "slide"})
    except ConfigError:  # sliding windows do not fit the sizes of this model
        return config
