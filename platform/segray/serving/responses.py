"""Responses for a mask: PNG of the mask, PNG of the overlay, or JSON."""

import base64
from collections import defaultdict
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
from segray.serving.requests import Output, ResponseOptions

PNG = "image/png"
JSON = "application/json"

BinaryMask = NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationResponse:
    """Response for one image.

    Attributes:
        body: encoded PNG, or `None` for a JSON response.
        summary: content of a JSON response, or `None` for an image response.
        version: version of the model that answered.
        compute_s: duration of the forward pass in seconds.
        batch_size: number of images in the forward pass.
    """

    body: bytes | None
    summary: dict[str, Any] | None
    version: str
    compute_s: float
    batch_size: int


def negotiate_output(accept: str) -> Output:
    """Returns the response type that an Accept header prefers: "json", or "mask" without a preference."""
    return "json" if _accept_quality(accept, JSON) > _accept_quality(accept, PNG) else "mask"


def _accept_quality(accept: str, media_type: str) -> float:
    """Returns the quality (0 to 1) of a media type in an Accept header.

    The most specific match applies: the type, its group (`image/*`), or `*/*`.
    """
    qualities = dict[str, float]()
    for entry in accept.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        qualities[name] = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0
    names = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((qualities[name] for name in names if name in qualities), 0.0)


def count_class_pixels(mask: Mask, classes: Classes) -> NDArray[np.int64]:
    """Returns the number of pixels of each class, (K,)."""
    return np.bincount(mask.reshape(-1), minlength=classes.num_classes)[: classes.num_classes]


def encode_png(image: Pixels, mask: Mask, classes: Classes, options: ResponseOptions) -> bytes:
    """Encodes a mask (H, W), or its overlay on the RGB image (H, W, 3), as PNG."""
    if options.output == "mask":
        return encode_mask(mask)
    return _png(draw_overlay(image, mask, classes, options.opacity))


def mask_summary(
    mask: Mask, class_pixels: NDArray[np.int64], classes: Classes, options: ResponseOptions
) -> dict[str, Any]:
    """Returns the JSON content for a mask (H, W): size, pixels and share of each present class, requested fields."""
    height, width = mask.shape
    summary: dict[str, Any] = {"height": height, "width": width, "classes": []}
    for class_id in map(int, np.flatnonzero(class_pixels)):
        count = int(class_pixels[class_id])
        entry: dict[str, Any] = {"id": class_id, "name": classes.names[class_id], "pixels": count}
        entry["share"] = count / mask.size
        if options.include & {"polygons", "rle"}:
            class_mask = (mask == class_id).astype(np.uint8)
            if "polygons" in options.include:
                entry["polygons"] = mask_to_polygons(class_mask)
            if "rle" in options.include:
                entry["rle"] = mask_to_rle(class_mask)
        summary["classes"].append(entry)
    if "mask" in options.include:
        summary["mask"] = _base64(encode_mask(mask))
    if "colours" in options.include:
        summary["colours"] = _base64(_png(colorize(mask, classes)))
    return summary


def mask_to_polygons(mask: BinaryMask) -> list[dict[str, Any]]:
    """Returns the polygons of a binary mask (H, W): one outer ring and the rings of the holes for each component.

    Points are [x, y] pairs at pixel centres. An outer ring follows the border pixels of the component. The ring of a
    hole follows the component's pixels around the hole. Filling the outer ring and removing the interior of each hole
    ring restores the mask.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons: defaultdict[int, dict[str, Any]] = defaultdict(lambda: {"outer": [], "holes": []})
    for index, (contour, (_, _, _, parent)) in enumerate(zip(contours, hierarchy[0] if contours else (), strict=True)):
        points = contour[:, 0].tolist()
        if parent < 0:
            polygons[index]["outer"] = points
        else:
            polygons[int(parent)]["holes"].append(points)
    return list(polygons.values())


def mask_to_rle(mask: BinaryMask) -> dict[str, Any]:
    """Encodes a binary mask (H, W) as COCO compressed RLE."""
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def batch_json(responses: Iterable[SegmentationResponse]) -> list[dict[str, Any]]:
    """Returns the JSON content of several responses, each with its version. Images are base64 text."""
    return [
        {"version": response.version, **(response.summary or {})}
        | ({"image": _base64(response.body)} if response.body is not None else {})
        for response in responses
    ]


def _png(pixels: Pixels) -> bytes:
    _, encoded = cv2.imencode(".png", pixels[..., ::-1])
    return encoded.tobytes()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
