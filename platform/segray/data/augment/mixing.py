"""Crops from several rows: mosaic and CutMix, applied to images and masks alike."""

from collections.abc import Sequence
from random import Random

from segray.data.images import Mask, Pixels

Crop = tuple[Pixels, Mask]

MOSAIC_ROWS = 4


def mosaic(crops: Sequence[Crop], random: Random) -> Crop:
    """Combines four crops into one, with one quarter from each around a random centre.

    The centre is sampled from the middle half of the crop. See: Bochkovskiy et al., YOLOv4 (2020), section 3.3.
    """
    image, mask = crops[0][0].copy(), crops[0][1].copy()
    side = len(mask)
    y, x = (random.randint(side // 4, side - side // 4) for _ in range(2))
    quarters = [(slice(y), slice(x, None)), (slice(y, None), slice(x)), (slice(y, None), slice(x, None))]
    for (rows, columns), (other_image, other_mask) in zip(quarters, crops[1:MOSAIC_ROWS], strict=True):
        image[rows, columns] = other_image[rows, columns]
        mask[rows, columns] = other_mask[rows, columns]
    return image, mask


def cut_mix(crop: Crop, other: Crop, random: Random) -> Crop:
    """Replaces a random box of a crop with the same box of another crop.

    The share of the box in the area is uniform over 0..1. See: Yun et al., CutMix (2019), section 3.1. Masks are cut
    together with their images, so labels need no mixing.
    """
    image, mask = crop[0].copy(), crop[1].copy()
    side = len(mask)
    half = round(side * random.random() ** 0.5) / 2
    y, x = (random.random() * side for _ in range(2))
    rows, columns = (slice(max(0, round(at - half)), round(at + half)) for at in (y, x))
    image[rows, columns] = other[0][rows, columns]
    mask[rows, columns] = other[1][rows, columns]
    return image, mask
