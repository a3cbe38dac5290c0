"""Polygons of a mask as JSON.

A fragmented mask has a million points. Arrow encodes them without holding the interpreter lock, so that the event loop
and the forward passes of the same process continue.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BinaryMask = NDArray[np.uint8]
Ints = NDArray[np.int32]

MIN_POLYGON_BYTES = 34
"""Length of the JSON of a polygon with one point of single digits, and of a separator."""
MIN_POINT_BYTES = 8
"""Length of the JSON of a point of single digits, and of a separator."""


class Rings(NamedTuple):
    """Contours of a binary mask.

    Attributes:
        points: (P, 2) x and y of the points of all contours.
        offsets: (C + 1,) index of the first point of each contour, and P.
        parents: (C,) index of the contour around each hole, and -1 for an outer contour.
    """

    points: Ints
    offsets: Ints
    parents: Ints


def encode_polygons(mask: BinaryMask, require_size: Callable[[int], None] = lambda _: None) -> bytes:
    """Returns the polygons of a binary mask (H, W) as a JSON array.

    A polygon consists of the outer ring of a component and the rings of its holes. Points are [x, y] pairs at pixel
    centres. An outer ring follows the border pixels of the component. The ring of a hole follows the component's
    pixels around the hole. Filling the outer ring and removing the interior of each hole ring restores the mask.

    Args:
        mask: 1 for the pixels of the region, else 0.
        require_size: function that is called with a lower bound of the number of bytes, before they are encoded. Its
            exceptions end the call.
    """
    x, y, width, height = cv2.boundingRect(mask)
    box = mask[y : y + height, x : x + width]
    if not box.size:
        return b"[]"
    num_components, _ = cv2.connectedComponents(box, connectivity=8)
    require_size((num_components - 1) * MIN_POLYGON_BYTES)
    rings = _find_rings(box, (x, y))
    require_size(len(rings.points) * MIN_POINT_BYTES)
    encoded = _encode_rings(rings)
    holes = _group_holes(encoded, rings.parents)
    outers = encoded.filter(pa.array(rings.parents < 0))
    polygons = pc.binary_join_element_wise('{"outer": ', outers, ', "holes": [', holes, "]}", "")
    return f"[{_join(polygons, [0, len(polygons)], ', ')[0].as_py()}]".encode("ascii")


def _find_rings(mask: BinaryMask, origin: tuple[int, int]) -> Rings:
    """Returns the contours of a mask that is not empty, with points relative to the (x, y) of its first pixel."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=origin)
    offsets = np.cumsum([0, *map(len, contours)], dtype=np.int32)
    return Rings(np.concatenate(contours)[:, 0], offsets, hierarchy[0, :, 3])


def _encode_rings(rings: Rings) -> pa.Array:
    """Returns the JSON of each ring."""
    x, y = (pa.array(np.ascontiguousarray(column)).cast(pa.string()) for column in rings.points.T)
    points = pc.binary_join_element_wise(x, y, ", ")
    return pc.binary_join_element_wise("[[", _join(points, rings.offsets, "], ["), "]]", "")


def _group_holes(encoded: pa.Array, parents: Ints) -> pa.Array:
    """Returns the joined JSON of the holes of each outer ring."""
    holes, outers = np.flatnonzero(parents >= 0), np.flatnonzero(parents < 0)
    in_order = holes[np.argsort(parents[holes], kind="stable")]
    offsets = np.append(np.searchsorted(parents[in_order], outers), len(holes)).astype(np.int32)
    return _join(encoded.take(pa.array(in_order)), offsets, ", ")


def _join(texts: pa.Array, offsets: object, separator: str) -> pa.Array:
    """Joins the texts between consecutive offsets."""
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts), separator)
