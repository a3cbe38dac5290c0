"""Training crops from the encoded bytes of rows.

`recipe` implements the published recipe, which is the default. `albumentations_pipeline` applies any other pipeline by
name. `mixing` combines several rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import numpy as np

from segray.config import DataConfig
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.data.augment.crop import PAD_COLOUR
from segray.data.augment.mixing import Crop, CutMix, Mosaic
from segray.data.augment.recipe import SegFormerRecipe
from segray.data.images import require_known_ids

Encoded = tuple[bytes, bytes]

_SEEDS = 2**32  # row seeds are below this value, so the random numbers for mixing are independent of the crops


class BadRowError(DataError):
    """A row that cannot be made into a crop; `index` is its position among the rows of the draw."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True, slots=True)
class CropDraw:
    """Random choices of one crop.

    Attributes:
        seeds: crop seed of the row and of each of its mix partners.
        mix: operation that combines their crops, or `None` if there are no partners.
    """

    seeds: tuple[int, ...]
    mix: Mosaic | CutMix | None = None

    @property
    def num_partners(self) -> int:
        """Number of other rows that the crop needs: 3 for mosaic, 1 for CutMix, otherwise 0."""
        return len(self.seeds) - 1


class Augmenter:
    """Makes training crops from encoded rows.

    All random choices depend only on the seed, so a crop does not depend on the rank, thread or node that makes it.

    Attributes:
        ignore_id: mask value of padded pixels.
        crop_px: side of the crop in px.
        num_classes: number of classes K; a mask with another id is an error of its row. `None` accepts every id.
    """

    def __init__(self, config: DataConfig, ignore_id: int, num_classes: int | None = None) -> None:
        self._config = config
        self.num_classes = num_classes
        self.ignore_id, self.crop_px = ignore_id, config.crop
        self._crop_row = _build_row_transform(config, ignore_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Augmenter, (self._config, self.ignore_id, self.num_classes)

    def draw(self, seed: int) -> CropDraw:
        """Samples the mixing of the crop with the given seed, 0..2^32-1."""
        random = Random(seed + _SEEDS)
        mix_type: type[Mosaic | CutMix] | None = None
        if random.random() < self._config.mosaic_prob:
            mix_type = Mosaic
        elif random.random() < self._config.cut_mix_prob:
            mix_type = CutMix
        if mix_type is None:
            return CropDraw((seed,))
        partner_seeds = [random.randrange(_SEEDS) for _ in range(mix_type.num_partners)]
        return CropDraw((seed, *partner_seeds), mix_type.sample(self.crop_px, random))

    def __call__(self, rows: Sequence[Encoded], draw: CropDraw) -> Crop:
        """Returns the image, (crop, crop, 3) uint8 RGB, and the ids, (crop, crop).

        Args:
            rows: encoded image and mask of the row, followed by those of its mix partners.
            draw: random choices of the crop.

        Raises:
            BadRowError: the bytes are not an image or a mask, the configured transforms fail on them, or the mask
                contains an id that is neither a class nor the ignore id.
        """
        crops = [self._crop(index, row, seed) for index, (row, seed) in enumerate(zip(rows, draw.seeds, strict=True))]
        return draw.mix.apply(crops) if draw.mix else crops[0]

    def _crop(self, index: int, row: Encoded, seed: int) -> Crop:
        try:
            crop: Crop = self._crop_row(*row, seed)
            if self.num_classes is not None:  # on a GPU, such an id would end the process without naming the row
                require_known_ids(crop[1], self.num_classes, self.ignore_id)
        except (DataError, ValueError, cv2.error) as error:
            if is_out_of_memory(error):  # the row is not at fault
                raise
            raise BadRowError(" ".join(str(error).split()), index) from error
        return crop

    def ignored_crop(self) -> Crop:
        """Returns a crop that does not contribute to the loss: the pad colour with the ignore id at every pixel."""
        dtype = np.uint8 if self.ignore_id <= 255 else np.uint16
        ids = np.full((self.crop_px, self.crop_px), self.ignore_id, dtype)
        return np.full((self.crop_px, self.crop_px, 3), PAD_COLOUR, np.uint8), ids


def validate_augment(config: DataConfig) -> None:
    """Builds the transforms of `data.augment`, if set, and applies them to a blank image of twice the crop size.

    Raises:
        ConfigError: a transform or argument does not exist, or a transform fails.
    """
    if config.augment is not None:
        from segray.data.augment import albumentations_pipeline  # noqa: PLC0415

        albumentations_pipeline.validate_pipeline(config)


def validate_transforms(config: DataConfig, height: int, width: int, ignore_id: int) -> None:
    """Applies the transforms of `data.augment`, if set, to a blank image of the given size.

    Raises:
        ConfigError: the result is not a valid crop.
    """
    if config.augment is not None:
        from segray.data.augment import albumentations_pipeline  # noqa: PLC0415

        albumentations_pipeline.validate_for_size(config, height, width, ignore_id)


def _build_row_transform(config: DataConfig, ignore_id: int) -> Any:
    if config.augment is None:
        return SegFormerRecipe(config, ignore_id)
    # albumentations is imported only if `data.augment` is set, because the import is slow.
    from segray.data.augment.albumentations_pipeline import AlbumentationsPipeline  # noqa: PLC0415

    return AlbumentationsPipeline(config, ignore_id)
