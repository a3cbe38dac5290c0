"""Metrics near contours: boundary IoU, and IoU within a trimap."""

import torch.nn.functional as F
from torch import Tensor

from segray.evaluation.metrics.confusion import class_counts_of_pixels


def contour_band(ids: Tensor, width: int, *, edges: bool) -> Tensor:
    """Returns a mask (H, W) of the pixels that have another id within `width` px (Chebyshev distance).

    Args:
        ids: (H, W) ids of any integer dtype, below 2^24.
        width: width in px, at least 1.
        edges: whether the outside of the image counts as another id.
    """
    values = ids[None, None].float()
    found = (_largest(values, width) != values) | (-_largest(-values, width) != values)
    found = found[0, 0]
    if edges:
        for side in (found[:width], found[-width:], found[:, :width], found[:, -width:]):
            side.fill_(True)
    return found


def _largest(values: Tensor, reach: int) -> Tensor:
    """Returns the maximum of the square window around each pixel, computed separably along rows and columns."""
    along = F.max_pool2d(values, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(along, (2 * reach + 1, 1), stride=1, padding=(reach, 0))


def boundary_counts(prediction: Tensor, mask: Tensor, num_classes: int, ignore_id: int, width: int) -> Tensor:
    """Returns the (K, 3) table for boundary IoU: pixels of each class within `width` px of the class's contour.

    Ignored pixels belong to no class in truth or prediction. The image edge is a contour, as in the authors' code.

    Args:
        prediction: class ids (H, W).
        mask: true class ids (H, W).
        num_classes: K.
        ignore_id: mask value of pixels that are not counted.
        width: width in px.

    See: Cheng et al., Boundary IoU, CVPR 2021.
    """
    valid = mask != ignore_id
    found = prediction.long().where(valid, num_classes)
    truth = mask.long().where(valid, num_classes)
    true_band, found_band = (contour_band(ids, width, edges=True) & valid for ids in (truth, found))
    return class_counts_of_pixels(found, truth, true_band, found_band, num_classes)


def trimap_counts(prediction: Tensor, mask: Tensor, num_classes: int, ignore_id: int, width: int) -> Tensor:
    """Returns the (K, 3) table of the pixels within `width` px of a contour of the truth.

    Contours of ignored regions are included.
    """
    counted = contour_band(mask, width, edges=False) & (mask != ignore_id)
    return class_counts_of_pixels(prediction, mask, counted, counted, num_classes)
