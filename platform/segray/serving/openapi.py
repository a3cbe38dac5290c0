"""OpenAPI schemas of requests and responses, and the API reference for the page at /docs."""

from dataclasses import dataclass
from typing import Any

from segray.serving.requests import IMAGE_TYPES
from segray.serving.responses import JSON, PNG

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

_REASON: Schema = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
_BINARY: Schema = {"type": "string", "format": "binary"}
_NUMBER, _TEXT, _WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
_POINTS: Schema = {"type": "array", "items": {"type": "array", "items": _WHOLE, "minItems": 2, "maxItems": 2}}
_POLYGON: Schema = {"type": "object", "properties": {"outer": _POINTS, "holes": {"type": "array", "items": _POINTS}}}
_RLE: Schema = {"type": "object", "properties": {"size": {"type": "array", "items": _WHOLE}, "counts": _TEXT}}
_CLASS: Schema = {
    "type": "object",
    "required": ["id", "name", "pixels", "share"],
    "properties": {
        "id": _WHOLE,
        "name": _TEXT,
        "pixels": _WHOLE,
        "share": _NUMBER,
        "polygons": {"type": "array", "items": _POLYGON},
        "rle": _RLE,
    },
}
_FIGURES: Schema = {
    "type": "object",
    "required": ["version"],
    "properties": {
        "version": _TEXT,
        "name": _TEXT,
        "height": _WHOLE,
        "width": _WHOLE,
        "classes": {"type": "array", "items": _CLASS},
        "mask": {**_TEXT, "description": "PNG of class ids, base64"},
        "colours": {**_TEXT, "description": "PNG of the classes' colours, base64"},
        "image": {**_TEXT, "description": "PNG, base64, where another output than json was asked for"},
    },
}


def _refused(**reasons: str) -> Responses:
    return {
        int(status.removeprefix("_")): {"description": reason, "content": {JSON: {"schema": _REASON}}}
        for status, reason in reasons.items()
    }


_KNOWN = _refused(_401="No token, or a wrong one", _503="Nobody can answer, or not in time")
_LIMITS = _refused(
    _413="More bytes, pixels or images than are taken",
    _415="Of another type than JPEG, PNG or WebP",
    _422="No image, a damaged one, or a parameter out of range",
    _429="Too many requests at once",
)
STATE: Responses = {200: {"description": "It lives"}}
READY: Responses = {200: {"description": "It answers"}, 503: {"description": "Nobody is ready"}}
AUTHENTICATED: Responses = {**_KNOWN, 200: {"description": "The model, its classes and their colours, metrics, tags"}}
METRICS: Responses = {**_KNOWN, 200: {"description": "Metrics", "content": {"text/plain": {"schema": _TEXT}}}}
SEGMENT: Responses = {
    **_KNOWN,
    **_LIMITS,
    200: {
        "description": "The mask of class ids or the overlay (PNG), or figures; the version stands in X-Segray-Version",
        "content": {PNG: {"schema": _BINARY}, JSON: {"schema": _FIGURES}},
    },
}
BATCH: Responses = {
    **_KNOWN,
    **_LIMITS,
    200: {"description": "Of each image in order", "content": {JSON: {"schema": {"type": "array", "items": _FIGURES}}}},
}


def _body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": content}}


def _form(name: str, schema: Schema) -> Schema:
    return {"multipart/form-data": {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}}


ONE_IMAGE = _body({**{kind: {"schema": _BINARY} for kind in IMAGE_TYPES}, **_form("image", _BINARY)})
IMAGES = _body(_form("images", {"type": "array", "items": _BINARY}))


@dataclass(frozen=True)
class Operation:
    """HTTP operation in the API reference.

    Attributes:
        method: HTTP method.
        path: URL path.
        summary: purpose of the operation.
        parameters: name, permitted values, and description of each parameter.
        request: media types of the request body.
        responses: status code and description of each response.
    """

    method: str
    path: str
    summary: str
    parameters: tuple[tuple[str, str, str], ...]
    request: tuple[str, ...]
    responses: tuple[tuple[str, str], ...]


def api_reference(schema: Schema) -> list[Operation]:
    """Converts an OpenAPI schema to the operations of the API reference."""
    return [
        Operation(
            method.upper(),
            path,
            one.get("summary", ""),
            tuple(_parameter(each) for each in one.get("parameters", [])),
            tuple(one.get("requestBody", {}).get("content", {})),
            tuple((status, told["description"]) for status, told in sorted(one["responses"].items())),
        )
        for path, methods in schema["paths"].items()
        for method, one in methods.items()
    ]


def _parameter(one: Schema) -> tuple[str, str, str]:
    schema = one["schema"]
    options = [
        option
        for part in (schema, schema.get("items", {}), *schema.get("anyOf", []))
        for option in part.get("enum", [])
    ]
    low, high = schema.get("minimum"), schema.get("maximum")
    may_be = " | ".join(map(str, options)) or (f"{low} to {high}" if low is not None else str(schema.get("type", "")))
    return one["name"], may_be, one.get("description", "")
