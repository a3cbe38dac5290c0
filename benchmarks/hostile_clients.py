"""Hostile clients of a server, for use in a separate process. Each one repeats one kind of attack."""

import asyncio
import io
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

import cv2
import numpy as np
from PIL import Image

PAUSE_S = 0.25
"""Pause of a client after each request. A server alone cannot limit the rate of cheap requests; a proxy can."""
DRIP_S, NUM_DRIPS = 1.0, 40
NUM_SLOW_CONNECTIONS = 20
ABORT_AFTER_S = 0.3
RESPONSE_TIMEOUT_S = 60.0
MIB = 2**20

Client = Callable[["Target", int], Awaitable[str]]
"""Sends request number n to a target, and returns a description of the response."""


@dataclass(frozen=True)
class Target:
    """Address of a server, and the local address of a client.

    Attributes:
        host, port: address of the server.
        source: local address of the client.
    """

    host: str
    port: int
    source: str


@dataclass(frozen=True)
class AttackPlan:
    """The hostile load.

    Attributes:
        url: URL of the server.
        seconds: duration.
        max_pixels: largest image that the server accepts, in pixels.
        max_mib: largest request that the server accepts, in MiB.
        seed: seed of the images.
    """

    url: str
    seconds: float
    max_pixels: int
    max_mib: float
    seed: int


def attack(plan: AttackPlan) -> dict[str, Counter[str]]:
    """Runs 16 hostile clients and returns the number of responses by kind of attack and status."""
    return asyncio.run(_attack(plan))


async def _attack(plan: AttackPlan) -> dict[str, Counter[str]]:
    clients, address = _clients(plan), urlsplit(plan.url)
    counts: dict[str, Counter[str]] = {name: Counter() for name, _ in clients}
    end = perf_counter() + plan.seconds

    async def repeat(name: str, client: Client, source: str) -> None:
        target, number = Target(str(address.hostname), int(address.port or 80), source), 0
        while perf_counter() < end:
            try:
                async with asyncio.timeout(min(RESPONSE_TIMEOUT_S, max(end - perf_counter(), 0.1))):
                    counts[name][await client(target, number)] += 1
            except TimeoutError:  # also an OSError
                counts[name]["no response"] += 1
            except (OSError, asyncio.IncompleteReadError):
                counts[name]["closed"] += 1
            number += 1
            await asyncio.sleep(PAUSE_S)

    sources = (f"127.0.2.{number}" for number in range(1, 255))
    await asyncio.gather(*(repeat(name, client, next(sources)) for name, client in clients))
    return counts


def _clients(plan: AttackPlan) -> list[tuple[str, Client]]:
    side, size = int(plan.max_pixels**0.5), int(plan.max_mib * MIB) - 1000
    largest, fragments = _jpeg(side, plan.seed, 64), _jpeg(512, plan.seed, 2)
    many, polygons = [fragments] * 16, "?output=json&include=polygons&include=rle"
    batches = [_form(f"/v1/segment/batch{polygons}", many), _form("/v1/segment/batch", [largest] * 2)]
    clients: list[tuple[str, Client]] = [
        ("wrong type", _sender(_wrong_types(size))),
        ("form", _sender(_damaged_forms(size))),
        *[("bomb", _sender(_bombs(plan)))] * 2,
        *[("slow body", _send_slowly)] * 2,
        *[("slow reader", _reader_of(_request("/v1/segment?output=overlay", largest)))] * 2,
        *[("largest image", _sender([_request("/v1/segment", largest)]))] * 3,
        *[("aborted", _aborter(_request("/v1/segment", largest)))] * 2,
        *[("large JSON", _sender([_request(f"/v1/segment{polygons}", fragments)]))] * 2,
        ("large batch", _sender(batches)),
    ]
    assert len(clients) == 16
    return clients


def _sender(requests: Sequence[bytes]) -> Client:
    async def send(target: Target, number: int) -> str:
        reader, writer = await _connect(target)
        try:
            writer.write(requests[number % len(requests)])
            status = await _read_status(reader)
            while await reader.read(2**16):
                pass
            return status
        finally:
            writer.transport.abort()

    return send


def _reader_of(request: bytes) -> Client:
    """Returns a client that reads only the status of its responses, on several connections."""

    async def send(target: Target, _number: int) -> str:
        connections = [await _connect(target, limit=2**10) for _ in range(4)]
        try:
            for _, writer in connections:
                writer.write(request)
            statuses = [await _read_status(reader) for reader, _ in connections]
            await asyncio.sleep(40.0)
            return statuses[-1]
        finally:
            for _, writer in connections:
                writer.transport.abort()

    return send


def _aborter(request: bytes) -> Client:
    async def send(target: Target, _number: int) -> str:
        _, writer = await _connect(target)
        writer.write(request)
        await asyncio.sleep(ABORT_AFTER_S)
        writer.transport.abort()
        return "aborted"

    return send


async def _send_slowly(target: Target, _number: int) -> str:
    connections = [await _connect(target) for _ in range(NUM_SLOW_CONNECTIONS)]
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {10 * MIB}\r\n\r\n"
    try:
        for _, writer in connections:
            writer.write(head.encode() + b"\xff\xd8" * 8)  # the start of a JPEG, which is not refused at once
        for _ in range(NUM_DRIPS):
            await asyncio.sleep(DRIP_S)
            for _, writer in connections:
                if not writer.is_closing():  # the server ends slow connections
                    writer.write(b"x" * 1024)
        return await _read_status(connections[-1][0])
    finally:
        for _, writer in connections:
            writer.transport.abort()


async def _connect(target: Target, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(target.host, target.port, local_addr=(target.source, 0), limit=limit)


async def _read_status(reader: asyncio.StreamReader) -> str:
    line = await reader.readuntil(b"\r\n")
    return line.split()[1].decode()


def _request(path: str, body: bytes, media_type: str = "image/jpeg") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _form(path: str, images: Sequence[bytes]) -> bytes:
    part = '--b\r\nContent-Disposition: form-data; name="images"; filename="{}.jpg"\r\n\r\n'
    parts = [part.format(number).encode() + image + b"\r\n" for number, image in enumerate(images)]
    return _request(path, b"".join([*parts, b"--b--\r\n"]), "multipart/form-data; boundary=b")


def _jpeg(side: int, seed: int, grain: int) -> bytes:
    """Returns a JPEG image of noise with grains of some pixels, which a model segments into fragments."""
    small = np.random.default_rng(seed).integers(
        0, 256, (max(1, side // grain), max(1, side // grain), 3), dtype=np.uint8
    )
    _, encoded = cv2.imencode(".jpg", cv2.resize(small, (side, side), interpolation=cv2.INTER_NEAREST))
    return encoded.tobytes()


def _wrong_types(size: int) -> list[bytes]:
    """Returns images of all formats that Pillow writes, and texts that keep its readers busy, as JPEG."""
    Image.init()
    contents = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"%x\n" * (size // 3 - 10),
        b"P6" + b" " * size,
        b"#define x 1\n" * (size // 12),
        b"\xff\xd8" + b"\xff" * size,
        b"\xff\xd8" + b"\xff\xe0\0\2" * (size // 4),
    ]
    for name in sorted(Image.SAVE):
        if name not in {"JPEG", "MPO", "PNG", "WEBP"}:
            content = _save(name)
            contents += [content] if content else []
    return [_request("/v1/segment", content) for content in contents]


def _damaged_forms(size: int) -> list[bytes]:
    """Returns forms that keep a parser busy that examines their lines."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    contents = [
        head + b"\r\n--b\r" * ((size - len(head)) // 6),
        b"--b\r\n\r\n\r\n" * (size // 9),
        b"--b\r\n" + b"X: y\r\n" * (size // 6 - 1),
    ]
    return [_request("/v1/segment/batch", content, "multipart/form-data; boundary=b") for content in contents]


def _save(name: str) -> bytes:
    """Returns an image in a format of Pillow, or nothing if the format does not support it."""
    for mode in ("RGB", "L", "1"):
        buffer = io.BytesIO()
        try:
            Image.new(mode, (64, 64)).save(buffer, name)
        except Exception:  # many formats accept few modes, or need an external library
            continue
        return buffer.getvalue()
    return b""


def _bombs(plan: AttackPlan) -> list[bytes]:
    """Returns images whose decoding takes much more time or memory than their size suggests."""
    side, size = int(plan.max_pixels**0.5), int(plan.max_mib * MIB) - 1000
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", (30000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
    allowed = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
    zeros = _chunk(b"IDAT", zlib.compress(bytes((3 * side + 1) * side), 9)) + _chunk(b"IEND", b"")
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(64 * MIB)))
    progressive = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(progressive, "JPEG", progressive=True)
    jpeg = progressive.getvalue()
    first = jpeg.index(b"\xff\xda")
    scan = jpeg[first : jpeg.index(b"\xff\xda", first + 1)]
    contents = [
        head + zeros,
        allowed + zeros,
        allowed + text * 20 + zeros,
        allowed + _chunk(b"teXt", b"") * (size // 12),
        jpeg[:first] + scan * min(1000, (size - first) // len(scan)) + b"\xff\xd9",
        jpeg[:first] + scan * min(50, (size - first) // len(scan)) + b"\xff\xd9",
    ]
    return [_request("/v1/segment", content) for content in contents]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
