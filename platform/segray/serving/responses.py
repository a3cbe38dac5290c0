"""Responses for a mask: PNG of the mask, PNG of the overlay, or JSON."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.core.classes import Classes
from segray.core.visualize import colorize, draw_overlay
from segray.data.images import Mask, Pixels, encode_mask
from segray.serving.requests import ResponseOptions

PNG = "image/png"
JSON = "application/json"

BinaryMask = NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationResponse:
    """Response for one image.

    Attributes:
        body: encoded PNG, or `None` for a JSON response.
        figures: content of a JSON response, or `None` for an image response.
        version: version of the model that answered.
        compute_s: duration of the forward pass in seconds.
        batch_size: number of images in the forward pass.
    """

    body: bytes | None
    figures: dict[str, Any] | None
    version: str
    compute_s: float
    batch_size: int


def count_class_pixels(mask: Mask, classes: Classes) -> NDArray[np.int64]:
    """Returns the number of pixels of each class, (K,)."""
    return np.bincount(mask.reshape(-1), minlength=classes.num_classes)[: classes.num_classes]


def encode_png(image: Pixels, mask: Mask, classes: Classes, asked: ResponseOptions) -> bytes:
    """Encodes a mask (H, W), or its overlay on the RGB image (H, W, 3), as PNG."""
    if asked.output == "mask":
        return encode_mask(mask)
    return _png(draw_overlay(image, mask, classes, asked.opacity))


def mask_summary(mask: Mask, pixels: NDArray[np.int64], classes: Classes, asked: ResponseOptions) -> dict[str, Any]:
    """Returns the JSON content for a mask (H, W): size, pixels and share of each present class, requested fields."""
    height, width = mask.shape
    found: dict[str, Any] = {"height": height, "width": width, "classes": []}
    for number in map(int, np.flatnonzero(pixels)):
        count = int(pixels[number])
        one: dict[str, Any] = {"id": number, "name": classes.names[number], "pixels": count}
        one["share"] = count / mask.size
        area = (mask == number).astype(np.uint8) if asked.include & {"polygons", "rle"} else None
        if area is not None and "polygons" in asked.include:
            one["polygons"] = mask_to_polygons(area)
        if area is not None and "rle" in asked.include:
            one["rle"] = mask_to_rle(area)
        found["classes"].append(one)
    if "mask" in asked.include:
        found["mask"] = _text(encode_mask(mask))
    if "colours" in asked.include:
        found["colours"] = _text(_png(colorize(mask, classes)))
    return found


def mask_to_polygons(area: BinaryMask) -> list[dict[str, Any]]:
    """Returns the polygons of a binary mask (H, W): one outer ring and the rings of the holes for each component.

    Points are [x, y] pairs at pixel centres. An outer ring follows the border pixels of the component. The ring of a
    hole follows the component's pixels around the hole. Filling the outer ring and removing the interior of each hole
    ring restores the mask.
    """
    lines, tree = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts: dict[int, dict[str, Any]] = {}
    for number, (line, (_, _, _, parent)) in enumerate(zip(lines, tree[0] if lines else (), strict=True)):
        points = line[:, 0].tolist()
        if parent < 0:
            parts.setdefault(number, {"outer": [], "holes": []})["outer"] = points
        else:
            parts.setdefault(int(parent), {"outer": [], "holes": []})["holes"].append(points)
    return list(parts.values())


def mask_to_rle(area: BinaryMask) -> dict[str, Any]:
    """Encodes a binary mask (H, W) as COCO compressed RLE."""
    found = coco.encode(np.asfortranarray(area))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode("ascii")}


def batch_json(answers: Iterable[SegmentationResponse]) -> list[dict[str, Any]]:
    """Returns the JSON content of several responses, each with its version. Images are base64 text."""
    return [
        {"version": one.version, **(one.figures or {}), **({"image": _text(one.body)} if one.body is not None else {})}
        for one in answers
    ]


def _png(pixels: Pixels) -> bytes:
    _, found = cv2.imencode(".png", pixels[..., ::-1])
    return found.tobytes()


def _text(found: bytes) -> str:
    return base64.b64encode(found).decode("ascii")
