"""Training crops: what happens to a row's bytes before a model sees them.

`recipe` is the published one and the default, `transforms` any other pipeline by name, `mixing` joins several rows.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import cv2
import numpy as np

from segray.config import DataConfig
from segray.core.errors import DataError
from segray.data.augment.crop import PAD_COLOUR
from segray.data.augment.mixing import MOSAIC_ROWS, Crop, cut_mix, mosaic
from segray.data.augment.recipe import SegFormerRecipe

Encoded = tuple[bytes, bytes]

_SEEDS = 2**32  # seeds of rows lie below, so what is drawn for the mixing is independent of the crops


class BadRowError(DataError):
    """A row that no crop can be made of; `index` tells which of those a draw is made of."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class Augmenter:
    """Makes the training crop of one draw, from the encoded rows it is made of and its seed.

    The seed alone decides every draw, so a crop does not depend on the rank, thread or node that makes it.

    Attributes:
        ignore_id: mask value of what is padded.
        crop_px: of the crop, in px.
    """

    def __init__(self, config: DataConfig, ignore_id: int) -> None:
        self._config = config
        self.ignore_id, self.crop_px = ignore_id, config.crop
        self._one = _of_one_row(config, ignore_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Augmenter, (self._config, self.ignore_id)

    def num_mix_partners(self, seed: int) -> int:
        """Returns how many other rows this draw is mixed with: 3 for a mosaic, 1 for a cut-mix, mostly 0."""
        return self._mixture(seed)[1]

    def __call__(self, rows: Sequence[Encoded], seed: int) -> Crop:
        """Returns (crop, crop, 3) uint8 RGB and (crop, crop) ids.

        Args:
            rows: encoded image and mask of the row, then of its companions.
            seed: of the draw, 0..2^32-1.

        Raises:
            BadRowError: the bytes are no image or no mask, or the settings' transforms cannot work on them.
        """
        random, companions = self._mixture(seed)
        seeds = [seed, *(random.randrange(_SEEDS) for _ in range(companions))]
        crops = [self._crop(index, row, own) for index, (row, own) in enumerate(zip(rows, seeds, strict=True))]
        if companions == MOSAIC_ROWS - 1:
            return mosaic(crops, random)
        return cut_mix(crops[0], crops[1], random) if companions else crops[0]

    def _crop(self, index: int, row: Encoded, seed: int) -> Crop:
        try:
            crop: Crop = self._one(*row, seed)
        except (DataError, ValueError, cv2.error) as error:
            raise BadRowError(" ".join(str(error).split()), index) from error
        return crop

    def _mixture(self, seed: int) -> tuple[Random, int]:
        random = Random(seed + _SEEDS)
        if random.random() < self._config.mosaic:
            return random, MOSAIC_ROWS - 1
        return random, int(random.random() < self._config.cut_mix)

    def ignored_crop(self) -> Crop:
        """Returns a crop that teaches nothing: the pad colour, and the ignore id everywhere."""
        dtype = np.uint8 if self.ignore_id <= 255 else np.uint16
        ids = np.full((self.crop_px, self.crop_px), self.ignore_id, dtype)
        return np.full((self.crop_px, self.crop_px, 3), PAD_COLOUR, np.uint8), ids


def validate_augment(config: DataConfig) -> None:
    """Builds the transforms of `data.augment`, if it is set, and applies them to a blank image.

    Raises:
        ConfigError: a transform or argument does not exist, or the result has another size than `data.crop`.
    """
    if config.augment is not None:
        from segray.data.augment import albumentations_pipeline  # noqa: PLC0415

        albumentations_pipeline.validate_pipeline(config)


def validate_transforms(config: DataConfig, height: int, width: int, ignore_id: int) -> None:
    """Tries the settings' transforms, if there are any, on an image of this size.

    Raises:
        ConfigError: no crop comes out.
    """
    if config.augment is not None:
        from segray.data.augment import albumentations_pipeline  # noqa: PLC0415

        albumentations_pipeline.validate_for_size(config, height, width, ignore_id)


def _of_one_row(config: DataConfig, ignore_id: int) -> Any:
    if config.augment is None:
        return SegFormerRecipe(config, ignore_id)
    # Only who names transforms waits for albumentations to be imported.
    from segray.data.augment.albumentations_pipeline import AlbumentationsPipeline  # noqa: PLC0415

    return AlbumentationsPipeline(config, ignore_id)
