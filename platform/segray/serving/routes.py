"""HTTP routes of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segray.core.errors import ServingError
from segray.core.html import render_page
from segray.core.numbers import MIB
from segray.serving.budget import client_name
from segray.serving.gateway import Gateway
from segray.serving.metrics import Counters, Gauges, render_prometheus
from segray.serving.openapi import (
    AUTHENTICATED,
    BATCH,
    HEALTH,
    IMAGES,
    METRICS,
    ONE_IMAGE,
    READY,
    SEGMENT,
    api_reference,
)
from segray.serving.requests import CLIENT_CLOSED, IncludeField, Output, RequestError, ResponseOptions
from segray.serving.responses import JSON, SegmentationResponse, negotiate_output
from segray.serving.status import ServingState
from segray.serving.uploads import read_images

Result = TypeVar("Result")

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

OutputQuery = Annotated[
    Output | None,
    Query(description="Type of the response. Defaults to JSON or the mask, depending on the Accept header."),
]
BatchOutputQuery = Annotated[Output, Query(description="Type of each result. Images are base64 text in the JSON.")]
IncludeQuery = Annotated[
    list[IncludeField], Query(default_factory=list, description="Additional fields of a JSON response; repeatable.")
]
OpacityQuery = Annotated[float, Query(ge=0, le=1, description="Opacity of the class colours in an overlay.")]


def build_app(gateway: Gateway) -> FastAPI:
    """Builds the FastAPI application of a gateway."""
    app = FastAPI(
        title="segray",
        version="1",
        description="Semantic segmentation: returns a mask of class ids for an image.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(RequestMetrics, counters=gateway.counters)
    _add_error_handlers(app)
    _add_segmentation(app, gateway)
    _add_status(app, gateway)
    _add_pages(app)
    return app


class RequestMetrics:
    """Middleware that counts requests by path and status and measures their duration."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app, self._counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = perf_counter(), "500"

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except asyncio.CancelledError:
            status = str(CLIENT_CLOSED)
            raise
        finally:
            route = scope.get("route")  # unknown paths share one label, which bounds the number of series
            path = getattr(route, "path", "other")
            self._counters.inc("segray_requests", path, status)
            self._counters.observe("segray_request_seconds", perf_counter() - started_at, path)


def _add_error_handlers(app: FastAPI) -> None:
    """Registers exception handlers that return errors as JSON with a one-line reason."""

    @app.exception_handler(RequestError)
    async def reject(_: Request, error: RequestError) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        return _json({"detail": str(error)}, headers.get(error.status), error.status)

    @app.exception_handler(ServingError)
    async def report_unavailable(_: Request, error: ServingError) -> Response:
        return _json({"detail": str(error)}, {"Retry-After": "5"}, 503)

    @app.exception_handler(RequestValidationError)
    async def reject_parameters(_: Request, error: RequestValidationError) -> Response:
        reasons = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
        return _json({"detail": "; ".join(reasons)}, status=422)


def _add_pages(app: FastAPI) -> None:
    """Adds the pages, which are rendered once. `/docs` describes the routes that exist already."""
    page_html = render_page(TEMPLATES / "page.html")
    docs_html = render_page(TEMPLATES / "docs.html", operations=api_reference(app.openapi()))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(page_html, headers=PAGE_HEADERS)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_html, headers=PAGE_HEADERS)


def _add_status(app: FastAPI, gateway: Gateway) -> None:
    async def authenticate(request: Request) -> None:
        gateway.authenticate(request.headers.get("authorization"))

    @app.get("/healthz", summary="Liveness of the server", responses=HEALTH)
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", summary="Readiness, served version and current problems", responses=READY)
    async def readyz(request: Request) -> Response:
        try:
            state = await gateway.state()
        except ServingError as error:
            return _json({"ready": False, "problems": [str(error)]}, status=503)
        is_ready = state.version is not None
        details = _details(state) if gateway.is_authenticated(request.headers.get("authorization")) else {}
        return _json({"ready": is_ready, **details}, status=200 if is_ready else 503)

    @app.get("/v1/model", summary="Served model", dependencies=[Depends(authenticate)], responses=AUTHENTICATED)
    async def model() -> dict[str, Any]:
        state = await gateway.state()
        if state.version is None:
            raise ServingError("no replica is ready yet.")
        challenger = state.models.get(state.target.challenger or "")
        return {**state.models[state.version], "challenger": challenger}

    @app.get("/metrics", summary="Prometheus metrics", dependencies=[Depends(authenticate)], responses=METRICS)
    async def metrics() -> Response:
        state = await gateway.state()
        by_version = {number: float(state.serving.count(number)) for number in dict.fromkeys(state.serving)}
        gauges: Gauges = {
            "segray_replicas": ("Number of replicas by served version.", by_version),
            "segray_problems": ("Number of current problems. /readyz lists them.", {"": float(len(state.problems))}),
        }
        return Response(render_prometheus(state.counts, gauges), media_type=PROMETHEUS)


def _details(state: ServingState) -> dict[str, Any]:
    """Returns the details for authenticated clients. Problems may contain paths and addresses."""
    return {
        "version": state.version,
        "wanted": state.target.champion,
        "challenger": state.target.challenger,
        "replicas": len(state.serving),
        "max_image_pixels": state.max_image_pixels,
        "problems": state.problems,
    }


def _add_segmentation(app: FastAPI, gateway: Gateway) -> None:
    max_response_bytes = int(gateway.settings.max_response_mib * MIB)

    async def authenticate(request: Request) -> None:
        gateway.authenticate(request.headers.get("authorization"))

    def post(path: str, **options: Any) -> Callable[[Callable[..., Awaitable[Response]]], Any]:
        return app.post(path, response_class=Response, dependencies=[Depends(authenticate)], **options)

    @post("/v1/segment", summary="Segment an image", responses=SEGMENT, openapi_extra=ONE_IMAGE)
    async def segment(
        request: Request, include: IncludeQuery, output: OutputQuery = None, opacity: OpacityQuery = 0.5
    ) -> Response:
        output = output or negotiate_output(request.headers.get("accept", ""))
        options = ResponseOptions(output, frozenset(include), opacity, max_bytes=max_response_bytes)
        async with _received_images(gateway, request) as images:
            if len(images) > 1:
                raise RequestError(f"the form contains {len(images)} files; expected one; use /v1/segment/batch.")
            started_at = perf_counter()
            response = await _run_while_connected(request, gateway.segment(images[0][1], options, _client(request)))
            return _segmentation_response(response, perf_counter() - started_at)

    @post("/v1/segment/batch", summary="Segment several images", responses=BATCH, openapi_extra=IMAGES)
    async def batch(
        request: Request, include: IncludeQuery, output: BatchOutputQuery = "json", opacity: OpacityQuery = 0.5
    ) -> Response:
        options = ResponseOptions(output, frozenset(include), opacity, is_embedded=True, max_bytes=max_response_bytes)
        async with _received_images(gateway, request) as images:
            content = await _run_while_connected(request, gateway.segment_batch(images, options, _client(request)))
            return Response(content, media_type=JSON)


@asynccontextmanager
async def _received_images(gateway: Gateway, request: Request) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Receives and checks the images of a request, then reserves places for them during the block."""
    client = _client(request)
    with gateway.reserve_memory(client) as reserve:
        images = await read_images(request, gateway.settings, reserve)
        await gateway.validate(images)
        async with gateway.reserve(client, len(images)):
            yield images


def _client(request: Request) -> str:
    """Returns the name of a client. Limits per client apply to it."""
    return client_name(request.client.host) if request.client else ""


async def _run_while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Returns the result of a coroutine, which is cancelled when the client disconnects.

    Raises:
        RequestError: the client disconnected (status 499).
    """
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError("the client disconnected.", CLIENT_CLOSED)
        return await task
    finally:
        task.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _segmentation_response(response: SegmentationResponse, seconds: float) -> Response:
    headers = {
        "X-Segray-Version": response.version,
        "X-Segray-Batch": str(response.batch_size),
        "Server-Timing": f"model;dur={response.compute_s * 1e3:.1f}, all;dur={seconds * 1e3:.1f}",
        "Cache-Control": "no-store",
    }
    return Response(response.body, headers=headers, media_type=response.media_type)


def _json(content: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Returns a JSON response in ASCII."""
    return Response(json.dumps(content), status, headers, JSON)
