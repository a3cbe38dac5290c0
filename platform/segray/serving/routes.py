"""HTTP routes of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segray.core.errors import ServingError
from segray.core.html import render_page
from segray.serving.controller import ServingState
from segray.serving.gateway import Gateway
from segray.serving.metrics import Gauges, render_prometheus
from segray.serving.openapi import (
    AUTHENTICATED,
    BATCH,
    IMAGES,
    METRICS,
    ONE_IMAGE,
    READY,
    SEGMENT,
    STATE,
    api_reference,
)
from segray.serving.requests import IMAGE_TYPES, IncludeField, Output, RequestError, ResponseOptions, validate_length
from segray.serving.responses import JSON, PNG, SegmentationResponse, batch_json

CLIENT_CLOSED = "499"
"""Status code in the metrics for requests whose client disconnected before the response."""
MULTIPART = "multipart/form-data"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

TEMPLATES = Path(__file__).with_name("templates")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

OutputAsked = Annotated[
    Output | None, Query(description="What is answered; without it Accept decides: JSON, or the mask.")
]
BatchOutput = Annotated[Output, Query(description="What is answered of each; an image stands in JSON as base64.")]
IncludeAsked = Annotated[
    list[IncludeField], Query(default_factory=list, description="In JSON beside the shares; repeatable.")
]
OpacityAsked = Annotated[float, Query(ge=0, le=1, description="Of the colours in an overlay.")]


def build_app(desk: Gateway) -> FastAPI:
    """Builds the FastAPI application of a gateway."""
    app = FastAPI(
        title="segray",
        version="1",
        description="Semantic segmentation: images in, masks of class ids out.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(RequestMetrics, desk=desk)
    _refusals(app)
    _pages(app)
    _segmentation(app, desk)
    _state(app, desk)
    return app


class RequestMetrics:
    """Middleware that counts requests by path and status and measures their duration."""

    def __init__(self, app: ASGIApp, desk: Gateway) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = perf_counter(), "500"

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, heard)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED
            raise
        finally:
            route = scope.get("route")  # unknown paths share one label, which bounds the number of series
            path = getattr(route, "path", "other")
            self._desk.tally.inc("segray_requests", path, status)
            self._desk.tally.observe("segray_request_seconds", perf_counter() - begun, path)


def _refusals(app: FastAPI) -> None:
    """Registers exception handlers that return errors as JSON with a one-line reason."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        more = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        return _json({"detail": str(error)}, more.get(error.status), error.status)

    @app.exception_handler(ServingError)
    async def unable(_: Request, error: ServingError) -> Response:
        return _json({"detail": str(error)}, {"Retry-After": "5"}, 503)

    @app.exception_handler(RequestValidationError)
    async def mistaken(_: Request, error: RequestValidationError) -> Response:
        lines = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return _json({"detail": "; ".join(lines)}, status=422)


def _pages(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(render_page(TEMPLATES / "page.html"), headers=PAGE_HEADERS)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            render_page(TEMPLATES / "docs.html", api=api_reference(app.openapi())), headers=PAGE_HEADERS
        )


def _state(app: FastAPI, desk: Gateway) -> None:
    async def known(request: Request) -> None:
        desk.authenticate(request.headers.get("authorization"))

    @app.get("/healthz", summary="Whether the server lives", responses=STATE)
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", summary="Whether it answers, with which version, what to look into", responses=READY)
    async def readyz(request: Request) -> Response:
        try:
            state = await desk.state()
        except ServingError as error:
            return _json({"ready": False, "problems": [str(error)]}, status=503)
        is_ready = state.version is not None
        told = _told(state) if desk.is_authenticated(request.headers.get("authorization")) else {}
        return _json({"ready": is_ready, **told}, status=200 if is_ready else 503)

    @app.get("/v1/model", summary="The model that answers", dependencies=[Depends(known)], responses=AUTHENTICATED)
    async def model() -> dict[str, Any]:
        state = await desk.state()
        if state.version is None:
            raise ServingError("no replica is ready yet.")
        challenger = state.described.get(state.wanted.challenger or "")
        return {**state.described[state.version], "challenger": challenger}

    @app.get("/metrics", summary="For Prometheus", dependencies=[Depends(known)], responses=METRICS)
    async def metrics() -> Response:
        state = await desk.state()
        by_version = {number: float(state.serving.count(number)) for number in dict.fromkeys(state.serving)}
        gauges: Gauges = {
            "segray_replicas": ("Replicas, by the version they answer with.", by_version),
            "segray_problems": (
                "Things a person should look into; /readyz names them.",
                {"": float(len(state.problems))},
            ),
        }
        return Response(render_prometheus(state.counts, gauges), media_type=PROMETHEUS)


def _told(state: ServingState) -> dict[str, Any]:
    """Returns the details for authenticated clients. Problems may contain paths and addresses."""
    wanted = {"version": state.version, "wanted": state.wanted.champion, "challenger": state.wanted.challenger}
    return {**wanted, "replicas": len(state.serving), "problems": state.problems}


def _segmentation(app: FastAPI, desk: Gateway) -> None:
    async def admitted(request: Request) -> AsyncIterator[None]:
        desk.authenticate(request.headers.get("authorization"))
        async with desk.reserve():
            yield

    def post(path: str, **more: Any) -> Callable[[Callable[..., Awaitable[Response]]], Any]:
        return app.post(path, response_class=Response, dependencies=[Depends(admitted)], **more)

    @post("/v1/segment", summary="Segment an image", responses=SEGMENT, openapi_extra=ONE_IMAGE)
    async def segment(
        request: Request, include: IncludeAsked, output: OutputAsked = None, opacity: OpacityAsked = 0.5
    ) -> Response:
        (_, body), *more = await _images(request, desk)
        if more:
            raise RequestError(f"the request has {1 + len(more)} images; expected one, or /v1/segment/batch.")
        asked = ResponseOptions(output or _accepted(request), frozenset(include), opacity)
        begun = perf_counter()
        return _response(await desk.segment(body, asked), perf_counter() - begun)

    @post("/v1/segment/batch", summary="Segment images", responses=BATCH, openapi_extra=IMAGES)
    async def batch(
        request: Request, include: IncludeAsked, output: BatchOutput = "json", opacity: OpacityAsked = 0.5
    ) -> Response:
        images, asked = await _images(request, desk), ResponseOptions(output, frozenset(include), opacity)
        async with desk.reserve(len(images) - 1):
            answers = await desk.segment_batch(images, asked)
        named = zip((name for name, _ in images), batch_json(answers), strict=True)
        return _json([{"name": name, **one} for name, one in named])


async def _images(request: Request, desk: Gateway) -> list[tuple[str, bytes]]:
    """Returns the name and the content of each image of a request.

    Raises:
        RequestError: the request has no image, too many images, a body that is too large, or another media type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {*IMAGE_TYPES, MULTIPART}:
        raise RequestError(f"the body is {kind or 'of no type'}; expected {', '.join([*IMAGE_TYPES, MULTIPART])}.", 415)
    body = await _body(request, desk)
    if kind != MULTIPART:
        return [("image", body)]
    files = await _parts(request.headers, body, desk.settings.most_images)
    if not files:
        raise RequestError("the form has no file; expected one or more, each an image.")
    return files


async def _body(request: Request, desk: Gateway) -> bytes:
    """Returns the request body. Reading stops at the size limit."""
    length = request.headers.get("content-length", "")
    if length.isdigit():
        validate_length(int(length), desk.settings)
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        validate_length(len(found), desk.settings)
    return bytes(found)


async def _parts(headers: Headers, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """Returns the name and the content of each file of a multipart form."""

    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(headers, whole(), max_files=most, max_fields=most).parse()  # type: ignore[arg-type]
    except MultiPartException as error:
        is_too_many = error.message.startswith("Too many files")
        expected = f"expected at most {most} files." if is_too_many else "expected a whole form."
        raise RequestError(
            f"the form cannot be read ({error.message}); {expected}", 413 if is_too_many else 422
        ) from error
    except Exception as error:  # the parser raises many exception types on damaged headers
        raise RequestError("the form cannot be read; expected multipart/form-data as browsers send it.") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(_text(file.filename or "image"), await file.read()) for file in files]
    finally:
        await form.close()


def _text(name: str) -> str:
    """Returns a file name as valid UTF-8 of at most 100 characters, because a form may declare any charset."""
    return name.encode("utf-8", "replace").decode()[:100]


def _accepted(request: Request) -> Output:
    accept = request.headers.get("accept", "*/*").lower()
    return "json" if _wanted(accept, JSON) > _wanted(accept, PNG) else "mask"


def _wanted(accept: str, kind: str) -> float:
    """Returns the quality (0 to 1) of a media type in an Accept header.

    The most specific match applies: the type, its group (`image/*`), or `*/*`.
    """
    said = dict[str, float]()
    for one in accept.split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        said[name] = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0
    return next((said[name] for name in (kind, f"{kind.partition('/')[0]}/*", "*/*") if name in said), 0.0)


def _response(answer: SegmentationResponse, seconds: float) -> Response:
    headers = {
        "X-Segray-Version": answer.version,
        "X-Segray-Batch": str(answer.batch_size),
        "Server-Timing": f"model;dur={answer.compute_s * 1e3:.1f}, all;dur={seconds * 1e3:.1f}",
        "Cache-Control": "no-store",
    }
    if answer.body is not None:
        return Response(answer.body, headers=headers, media_type=PNG)
    return _json({"version": answer.version, **(answer.figures or {})}, headers)


def _json(found: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Returns a JSON response in ASCII."""
    return Response(json.dumps(found), status, headers, JSON)
