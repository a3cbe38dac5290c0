"""Crops from several rows: mosaic and CutMix, applied to images and masks alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from segray.data.images import Mask, Pixels

Crop = tuple[Pixels, Mask]


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Combination of four crops into one, with one quarter from each around a centre.

    See: Bochkovskiy et al., YOLOv4 (2020), section 3.3.

    Attributes:
        y, x: centre in px.
    """

    num_partners: ClassVar[int] = 3

    y: int
    x: int

    @classmethod
    def sample(cls, side: int, random: Random) -> "Mosaic":
        """Samples the centre from the middle half of a crop with the given side."""
        return cls(random.randint(side // 4, side - side // 4), random.randint(side // 4, side - side // 4))

    def apply(self, crops: Sequence[Crop]) -> Crop:
        """Returns the mosaic of four crops; the first one is at the top left."""
        image, mask = crops[0][0].copy(), crops[0][1].copy()
        top, bottom = slice(self.y), slice(self.y, None)
        left, right = slice(self.x), slice(self.x, None)
        for quarter, (other_image, other_mask) in zip(
            [(top, right), (bottom, left), (bottom, right)], crops[1:], strict=True
        ):
            image[quarter] = other_image[quarter]
            mask[quarter] = other_mask[quarter]
        return image, mask


@dataclass(frozen=True, slots=True)
class CutMix:
    """Replacement of a box of a crop by the same box of another crop.

    Masks are cut together with their images, so labels need no mixing. See: Yun et al., CutMix (2019), section 3.1.

    Attributes:
        rows, columns: range of the box along each side of the crop in px.
    """

    num_partners: ClassVar[int] = 1

    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def sample(cls, side: int, random: Random) -> "CutMix":
        """Samples a box whose share of the area is uniform over 0..1; parts outside the crop are cut off."""
        half = round(side * random.random() ** 0.5) / 2
        y, x = random.random() * side, random.random() * side
        rows, columns = ((max(0, round(centre - half)), round(centre + half)) for centre in (y, x))
        return cls(rows, columns)

    def apply(self, crops: Sequence[Crop]) -> Crop:
        """Returns the first of two crops with the box of the second."""
        (image, mask), (other_image, other_mask) = crops
        image, mask = image.copy(), mask.copy()
        box = slice(*self.rows), slice(*self.columns)
        image[box] = other_image[box]
        mask[box] = other_mask[box]
        return image, mask
