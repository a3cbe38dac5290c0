"""Prediction as a replica of the server does it, shared by serving and by the latency gates of a promotion."""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from segray.config import Config, ServeConfig
from segray.core.classes import Classes
from segray.core.errors import ConfigError
from segray.data.images import Mask, Pixels
from segray.inference.predictor import Predictor
from segray.inference.segment import InferenceConfig
from segray.models import checkpoint


class ServingPredictor:
    """Segments images with the settings of the server: `serve.precision`, and sliding windows for large images.

    Args:
        folder: checkpoint folder.
        device: "cpu" or "cuda".
        settings: serving configuration.

    Attributes:
        config: Config of the model with the precision of the server.
        classes: classes of the mask ids.
        full_image: inference settings for images of at most `serve.slide_above_pixels` pixels.
        sliding: inference settings for larger images.
    """

    config: Config
    classes: Classes
    full_image: InferenceConfig
    sliding: InferenceConfig

    def __init__(self, folder: Path, device: str, settings: ServeConfig) -> None:
        config = checkpoint.load_config(folder).with_eval_overrides({"precision": settings.precision})
        self._predictor = Predictor(folder, device, config)
        self.config, self.classes = config, self._predictor.classes
        self._slide_above_pixels = settings.slide_above_pixels
        self.full_image = InferenceConfig.from_config(config)
        self.sliding = InferenceConfig.from_config(_sliding_config(config))

    def mode(self, size: tuple[int, int]) -> InferenceConfig:
        """Returns the inference settings for images of size (H, W)."""
        return self.sliding if prod(size) > self._slide_above_pixels else self.full_image

    def predict_batch(self, images: Sequence[Pixels], mode: InferenceConfig | None = None) -> list[Mask]:
        """Segments images (H, W, 3) uint8 of one size into masks (H, W).

        Args:
            images: RGB images.
            mode: inference settings; defaults to those for the size of the images.
        """
        height, width = images[0].shape[:2]
        return self._predictor.predict_batch(images, mode or self.mode((height, width)))

    def add_layer_hook(self, hook: Callable[[], object]) -> None:
        """Registers a function that is called before each layer of the model, see `Predictor.add_layer_hook`."""
        self._predictor.add_layer_hook(hook)


def _sliding_config(config: Config) -> Config:
    """Returns the configuration for large images."""
    try:
        return config.with_eval_overrides({"mode": "slide"})
    except ConfigError:  # sliding windows do not fit the sizes of this model
        return config
