"""Requests to the HTTP server, with its gateway, a controller and a replica in one process."""

import asyncio
import errno
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from random import Random

import h11
from mlflow.tracking import MlflowClient

from segray.config import ServeConfig
from segray.serving.http_server import HttpServer
from segray.serving.metrics import Counters
from segray.serving.routes import build_app

from ..serving.conftest import LocalServing, Store
from .images import hostile_image, seed_images
from .mutations import hostile_text, mutate_bytes
from .reader import Files, Reader

TOKEN = "a-token-of-thirty-two-characters"
ANSWER_LIMIT_S = 20.0
TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "text/html",
    "",
)
QUERIES = (
    "",
    "?output=json",
    "?output=overlay&opacity=0.5",
    "?output=json&include=polygons&include=rle",
    "?opacity=nan",
    "?output=%00",
)
CLOSED = {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}
SERVERS: list[tuple[int, Counters]] = []
"""Port of the running server, and its counters."""


@contextmanager
def running_service(folder: Path, database: Path | None = None) -> Iterator[None]:
    """Serves a registered version on a free port of the loopback interface until the context ends.

    Args:
        folder: folder of the registry; it is emptied.
        database: MLflow database without experiments; `None` makes one, which takes seconds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if database is None:
        database = folder / "empty.db"
        MlflowClient(f"sqlite:///{database}").search_experiments()
    store = Store(folder, database)
    store.add(0, "champion")
    ready, stopped = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(store, ready, stopped)), daemon=True)
    thread.start()
    assert ready.wait(120), "the server did not start"
    try:
        yield
    finally:
        stopped.set()
        thread.join(20)
        SERVERS.clear()


async def _serve(store: Store, ready: threading.Event, stopped: threading.Event) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ServeConfig(port=port, poll_s=0.5, max_image_pixels=2**20, max_request_mib=4)
    serving = LocalServing(store, settings, TOKEN)
    await serving.ready()
    await serving.until(lambda state: state.version is not None, 90)
    server = HttpServer(build_app(serving.gateway), settings)
    await server.start()
    SERVERS.append((port, serving.gateway.counters))
    ready.set()
    while not stopped.is_set():
        await asyncio.sleep(0.05)
    await server.stop()
    for other in asyncio.all_tasks() - {asyncio.current_task()}:
        other.cancel()


def request_files(draw: Random) -> Files:
    return {"request.bin": build_request(draw, draw.choice(list(seed_images().values())))}


def build_request(draw: Random, image: bytes, query: str | None = None) -> bytes:
    media_type = draw.choice(TYPES[:4] * 2 + TYPES)
    body = image
    if media_type.startswith("multipart"):
        name = hostile_text(draw, Path("/")).encode("utf-8", "replace").replace(b"\n", b"")[:5000]
        part = (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="' + name + b'"\r\n\r\n' + image + b"\r\n"
        )
        body = part * draw.choice((1, 1, 2)) + b"--b--\r\n"
    path = draw.choice(("/v1/segment", "/v1/segment", "/v1/segment/batch", "/v1/model", "/readyz", "/metrics", "/"))
    method = b"POST" if "segment" in path else b"GET"
    head = [
        method + b" " + (path + (draw.choice(QUERIES) if query is None else query)).encode() + b" HTTP/1.1",
        b"Host: segray",
        b"Connection: close",
        b"Authorization: Bearer " + TOKEN.encode(),
        b"Content-Type: " + media_type.encode(),
        b"Content-Length: " + str(len(body)).encode(),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def mutate_request(draw: Random, data: bytes, _outside: Path) -> bytes:
    """Returns a request with a hostile body, a damaged head, or both."""
    choice = draw.random()
    if choice < 0.5:
        return build_request(draw, hostile_image(draw, seed_images()))
    head, _, body = data.partition(b"\r\n\r\n")
    if choice < 0.65:
        lines = head.split(b"\r\n")
        extra = (
            b"Transfer-Encoding: chunked",
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Expect: 100-continue",
            b"X: " + b"a" * 100_000,
        )
        lines[draw.randrange(1, len(lines))] = draw.choice(
            (*extra, b"Accept: \xff", b"Range: bytes=0-", b"Content-Type: multipart/form-data; boundary=" + b"b" * 300)
        )
        return b"\r\n".join(lines) + b"\r\n\r\n" + body
    if choice < 0.8:
        return mutate_bytes(draw, head) + b"\r\n\r\n" + body
    return head + b"\r\n\r\n" + mutate_bytes(draw, body)


def send_request(_draw: Random, source: Path, _target: Path) -> None:
    """Sends the bytes and checks the status of the response. A complete request has one.

    The server does not answer a client that closes its sending half, which thus ends an incomplete request.
    """
    content = (source / "request.bin").read_bytes()
    port, counters = SERVERS[0]
    is_complete = is_complete_request(content)
    with socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT_S) as client:
        try:
            client.sendall(content)
            if not is_complete:
                client.shutdown(socket.SHUT_WR)
            response = HTTPResponse(client, method=content.partition(b" ")[0].decode("latin-1"))
            response.begin()
            response.read()
        except HTTPException as error:  # also no response
            if is_complete:
                raise AssertionError(f"{error!r} of the request {content[:200]!r}") from error
        except OSError as error:  # the server may close before it has read the whole body
            if error.errno not in CLOSED:
                raise
        else:
            assert response.status < 500, f"status {response.status} of the request {content[:200]!r}"
    # An exception is counted as status 500, also if the client does not see it. It may be of an earlier request.
    failures = [key for key in dict(counters.counts) if key[0] == "segray_requests" and key[1][1] == "500"]
    assert not failures, f"status 500 on {failures}"


def is_complete_request(content: bytes) -> bool:
    """Returns whether the bytes start with a complete and valid request, by the parser of h11."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(content)
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return True
    except h11.RemoteProtocolError:
        return False
    return False


READERS = {
    "http": Reader(
        request_files,
        send_request,
        5,
        60,
        has_tree=False,
        names_source=False,
        group="http",
        mutations={".bin": mutate_request},
    )
}
