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
    band = ((_window_max(values, width) != values) | (-_window_max(-values, width) != values))[0, 0]
    if edges:
        for side in (band[:width], band[-width:], band[:, :width], band[:, -width:]):
            side.fill_(True)
    return band


def _window_max(values: Tensor, radius: int) -> Tensor:
    """Returns the maximum of the square window around each pixel, computed separably along rows and columns."""
    row_max = F.max_pool2d(values, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(row_max, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


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
    predicted = prediction.long().where(valid, num_classes)
    truth = mask.long().where(valid, num_classes)
    true_band, predicted_band = (contour_band(ids, width, edges=True) & valid for ids in (truth, predicted))
    return class_counts_of_pixels(predicted, truth, true_band, predicted_band, num_classes)


def trimap_counts(prediction: Tensor, mask: Tensor, num_classes: int, ignore_id: int, width: int) -> Tensor:
    """Returns the (K, 3) table of the pixels within `width` px of a contour of the truth.

    Contours of ignored regions are included.
    """
    band = contour_band(mask, width, edges=False) & (mask != ignore_id)
    return class_counts_of_pixels(prediction, mask, band, band, num_classes)
