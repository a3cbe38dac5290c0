"""Prediction from a checkpoint and an image to a mask, shared by validation, evaluation and serving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.config import Config
from segray.core.classes import Classes
from segray.core.errors import CapacityError, DataError
from segray.data.images import Mask
from segray.data.preprocess import preprocess, require_input_limits
from segray.inference.segment import InferenceConfig, segment, segment_with_probabilities
from segray.models import checkpoint


class Predictor:
    """Segments images with the model of a checkpoint folder.

    Attributes:
        config: Config of the model; images are resized and processed as in validation, unless another Config is given.
        classes: classes of the ids in a mask.
    """

    config: Config
    classes: Classes

    def __init__(self, folder: Path | str, device: str = "cpu", config: Config | None = None) -> None:
        folder = Path(folder)
        self._model = checkpoint.load_model(folder).eval()
        self.to(device)
        self.config = config or checkpoint.load_config(folder)
        self.classes = checkpoint.load_classes(folder)

    def to(self, device: str) -> Self:
        """Moves the model to "cpu", "cuda" or, with "auto", to a GPU if there is one, and returns `self`.

        Raises:
            CapacityError: the device is "cuda" and there is no GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise CapacityError("device is cuda, but torch finds no GPU here; use cpu or auto.")
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._model.to(self._device)
        return self

    def __call__(self, image: NDArray[np.uint8]) -> Mask:
        """Returns the class ids (H, W) of an RGB image (H, W, 3) uint8; uint8 for fewer than 256 classes, else uint16.

        Raises:
            DataError: the image has another dtype or shape, or it is so narrow that its model input would be too large.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[NDArray[np.uint8]], mode: InferenceConfig | None = None) -> list[Mask]:
        """Returns the mask of each image, computed in one forward pass. All images must have the same size.

        Args:
            images: RGB images, (H, W, 3) uint8.
            mode: inference settings; defaults to those of `config`.

        Raises:
            DataError: an image has another dtype or shape, or the sizes differ.
        """
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise DataError(f"{len(images)} images have {len(shapes)} different sizes; expected the same size.")
        batch = torch.cat([self._preprocess(image) for image in images])
        ids = segment(self._model, batch, images[0].shape[:2], mode or InferenceConfig.from_config(self.config))
        return [self._mask(image_ids) for image_ids in ids]

    def add_layer_hook(self, hook: Callable[[], object]) -> None:
        """Registers a function that is called before each layer of the model. Its exceptions end the prediction."""
        for module in self._model.modules():
            if not list(module.children()):
                module.register_forward_pre_hook(lambda *_: hook() and None)

    def predict_with_probabilities(self, image: NDArray[np.uint8]) -> tuple[Mask, NDArray[np.float32]]:
        """Returns the mask of an image and the probability of every class, (K, H, W)."""
        ids, probabilities = segment_with_probabilities(
            self._model, self._preprocess(image), image.shape[:2], InferenceConfig.from_config(self.config)
        )
        return self._mask(ids[0]), probabilities[0].cpu().numpy()

    def _preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Returns the image as model input (1, 3, H', W') on the device."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"the image is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB.")
        short_side, size_multiple = self.config.data.short_side, self.config.eval.size_multiple
        require_input_limits(image, short_side, size_multiple)
        return preprocess(image, short_side, size_multiple).to(self._device)

    def _mask(self, ids: Tensor) -> Mask:
        mask = ids.cpu().numpy()
        return mask.astype(np.uint8) if self.classes.num_classes < 256 else mask.astype(np.uint16)
