"""Responses for a mask: PNG of the mask, PNG of the overlay, or JSON."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.core.classes import Classes
from segray.core.visualize import colorize, draw_overlay
from segray.data.images import Mask, Pixels, encode_mask
from segray.serving.polygons import BinaryMask, encode_polygons
from segray.serving.requests import Output, ResponseOptions

PNG = "image/png"
JSON = "application/json"


@dataclass(frozen=True)
class SegmentationResponse:
    """Response for one image.

    Attributes:
        body: encoded PNG or JSON.
        media_type: media type of the body.
        version: version of the model that answered.
        compute_s: duration of the forward pass in seconds.
        batch_size: number of images in the forward pass.
    """

    body: bytes
    media_type: str
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
    return encode_png_image(draw_overlay(image, mask, classes, options.opacity))


def encode_body(
    image: Pixels | None,
    mask: Mask,
    class_pixels: NDArray[np.int64],
    classes: Classes,
    options: ResponseOptions,
    check: Callable[[], None] = lambda: None,
) -> tuple[bytes, str]:
    """Returns the body of a response and its media type.

    Args:
        image: RGB image (H, W, 3). `None` if the output is JSON.
        mask: class ids (H, W).
        class_pixels: number of pixels of each class (K,).
        classes: classes of the mask ids.
        options: response options.
        check: function that is called before each class of JSON. Its exceptions end the call.

    Raises:
        ResponseSizeError: the body would be larger than `options.max_bytes`.
    """
    if options.output == "json":
        body, media_type = encode_summary(mask, class_pixels, classes, options, check), JSON
    else:
        assert image is not None
        body, media_type = encode_png(image, mask, classes, options), PNG
        if options.is_embedded:
            body, media_type = encode_json({"version": options.version, "image": _base64(body)}), JSON
    options.require_size(len(body))
    return body, media_type


def encode_summary(
    mask: Mask,
    class_pixels: NDArray[np.int64],
    classes: Classes,
    options: ResponseOptions,
    check: Callable[[], None] = lambda: None,
) -> bytes:
    """Returns the JSON for a mask (H, W): version, size, pixels and share of each present class, requested fields.

    Raises:
        ResponseSizeError: the JSON would be larger than `options.max_bytes`.
    """
    height, width = mask.shape
    entries, size = list[bytes](), 0
    for class_id in map(int, np.flatnonzero(class_pixels)):
        check()
        count = int(class_pixels[class_id])
        content = {"id": class_id, "name": classes.names[class_id], "pixels": count, "share": count / mask.size}
        entry = encode_json(content)
        if options.has_shapes:
            entry = _add_shapes(entry, (mask == class_id).view(np.uint8), options)
        entries.append(entry)
        size += len(entry)
        options.require_size(size)
    summary: dict[str, Any] = {"version": options.version, "height": height, "width": width}
    if "mask" in options.include:
        summary["mask"] = _base64(encode_mask(mask))
    if "colours" in options.include:
        summary["colours"] = _base64(encode_png_image(colorize(mask, classes)))
    return with_field(encode_json(summary), "classes", b"[" + b", ".join(entries) + b"]")


def _add_shapes(entry: bytes, binary: BinaryMask, options: ResponseOptions) -> bytes:
    """Adds the polygons and run lengths of a class to its JSON entry."""
    if "polygons" in options.include:
        entry = with_field(entry, "polygons", encode_polygons(binary, options.require_size))
    if "rle" in options.include:
        entry = with_field(entry, "rle", encode_json(mask_to_rle(binary)))
    return entry


def mask_to_rle(mask: BinaryMask) -> dict[str, Any]:
    """Encodes a binary mask (H, W) as COCO compressed RLE."""
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def join_batch(names: Iterable[str], responses: Iterable[SegmentationResponse]) -> bytes:
    """Returns the JSON array of the responses of a batch, each with the name of its image."""
    pairs = zip(names, responses, strict=True)
    return b"[" + b", ".join(with_field(response.body, "name", encode_json(name)) for name, response in pairs) + b"]"


def encode_json(content: Any) -> bytes:
    """Encodes content as JSON in ASCII."""
    return json.dumps(content).encode("ascii")


def with_field(encoded: bytes, name: str, value: bytes) -> bytes:
    """Adds a field with an encoded value to an encoded JSON object that is not empty."""
    return b"".join([encoded[:-1], b", ", encode_json(name), b": ", value, b"}"])


def encode_png_image(pixels: Pixels) -> bytes:
    """Encodes an RGB image (H, W, 3) as PNG."""
    _, encoded = cv2.imencode(".png", pixels[..., ::-1])
    return encoded.tobytes()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
