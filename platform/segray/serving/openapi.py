"""OpenAPI schemas of requests and responses, and the API reference for the page at /docs.

The routes return encoded responses, from which FastAPI cannot derive a schema.
"""

from dataclasses import dataclass
from typing import Any

from segray.serving.requests import IMAGE_TYPES
from segray.serving.responses import JSON, PNG

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

_ERROR: Schema = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
_BINARY: Schema = {"type": "string", "format": "binary"}
_NUMBER, _STRING, _INTEGER = {"type": "number"}, {"type": "string"}, {"type": "integer"}
_POINTS: Schema = {"type": "array", "items": {"type": "array", "items": _INTEGER, "minItems": 2, "maxItems": 2}}
_POLYGON: Schema = {"type": "object", "properties": {"outer": _POINTS, "holes": {"type": "array", "items": _POINTS}}}
_RLE: Schema = {"type": "object", "properties": {"size": {"type": "array", "items": _INTEGER}, "counts": _STRING}}
_CLASS: Schema = {
    "type": "object",
    "required": ["id", "name", "pixels", "share"],
    "properties": {
        "id": _INTEGER,
        "name": _STRING,
        "pixels": _INTEGER,
        "share": _NUMBER,
        "polygons": {"type": "array", "items": _POLYGON},
        "rle": _RLE,
    },
}
_RESULT: Schema = {
    "type": "object",
    "required": ["version"],
    "properties": {
        "version": _STRING,
        "name": _STRING,
        "height": _INTEGER,
        "width": _INTEGER,
        "classes": {"type": "array", "items": _CLASS},
        "mask": {**_STRING, "description": "PNG of the class ids, as base64"},
        "colours": {**_STRING, "description": "PNG of the class colours, as base64"},
        "image": {**_STRING, "description": "PNG as base64, if the requested output is not json"},
    },
}


def _errors(descriptions: dict[int, str]) -> Responses:
    return {
        status: {"description": description, "content": {JSON: {"schema": _ERROR}}}
        for status, description in descriptions.items()
    }


_COMMON_ERRORS = _errors({401: "Missing or invalid token", 503: "No replica is available, or the request timed out"})
_IMAGE_ERRORS = _errors(
    {
        408: "The request body arrived too slowly",
        413: "The request has too many bytes, pixels or images, or the response has too many bytes",
        415: "Unsupported media type; expected JPEG, PNG or WebP",
        422: "Missing or damaged image, or invalid parameter",
        429: "Too many pending images or bytes, of all clients or of this client",
    }
)
HEALTH: Responses = {200: {"description": "The server is running"}}
READY: Responses = {200: {"description": "The server is ready"}, 503: {"description": "No replica is ready"}}
AUTHENTICATED: Responses = {
    **_COMMON_ERRORS,
    200: {"description": "Model version with its classes, colours, metrics and tags"},
}
METRICS: Responses = {
    **_COMMON_ERRORS,
    200: {"description": "Metrics in the Prometheus text format", "content": {"text/plain": {"schema": _STRING}}},
}
SEGMENT: Responses = {
    **_COMMON_ERRORS,
    **_IMAGE_ERRORS,
    200: {
        "description": "Mask of class ids or overlay (PNG), or JSON. The header X-Segray-Version contains the version",
        "content": {PNG: {"schema": _BINARY}, JSON: {"schema": _RESULT}},
    },
}
BATCH: Responses = {
    **_COMMON_ERRORS,
    **_IMAGE_ERRORS,
    200: {
        "description": "Result for each image, in the order of the request",
        "content": {JSON: {"schema": {"type": "array", "items": _RESULT}}},
    },
}


def _request_body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": content}}


def _form(name: str, schema: Schema) -> Schema:
    return {"multipart/form-data": {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}}


ONE_IMAGE = _request_body(
    {**{media_type: {"schema": _BINARY} for media_type in IMAGE_TYPES}, **_form("image", _BINARY)}
)
IMAGES = _request_body(_form("images", {"type": "array", "items": _BINARY}))


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
            method=method.upper(),
            path=path,
            summary=operation.get("summary", ""),
            parameters=tuple(_describe_parameter(parameter) for parameter in operation.get("parameters", [])),
            request=tuple(operation.get("requestBody", {}).get("content", {})),
            responses=tuple(
                (status, response["description"]) for status, response in sorted(operation["responses"].items())
            ),
        )
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _describe_parameter(parameter: Schema) -> tuple[str, str, str]:
    """Returns name, permitted values and description of a parameter."""
    schema = parameter["schema"]
    nested_schemas = (schema, schema.get("items", {}), *schema.get("anyOf", []))
    choices = [str(choice) for nested in nested_schemas for choice in nested.get("enum", [])]
    if choices:
        values = " | ".join(choices)
    elif "minimum" in schema:
        values = f"{schema['minimum']} to {schema['maximum']}"
    else:
        values = str(schema.get("type", ""))
    return parameter["name"], values, parameter.get("description", "")
