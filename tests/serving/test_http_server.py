"""The HTTP server ends connections that are slow or greedy, and answers the others meanwhile."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from socket import create_server

import pytest

from segray.config import ServeConfig
from segray.core.errors import ServingError
from segray.serving import http_server
from segray.serving.gateway import Gateway
from segray.serving.http_server import HttpServer
from segray.serving.responses import SegmentationResponse
from segray.serving.routes import build_app
from segray.serving.status import ServingState, TargetVersions

from .conftest import picture

LARGE = b"x" * 2**23
HEAD = "POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


class FakeReplicas:
    """Replicas that answer at once, or never, and record which requests are dropped."""

    def __init__(self, body=b"{}", delay=0.0):
        self.body, self.delay, self.dropped, self.started = body, delay, 0, 0

    async def segment(self, *_):
        self.started += 1
        yield None
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        yield SegmentationResponse(self.body, "image/png", "1", 0.0, 1)


class FakeController:
    """Controller of a server with one replica."""

    async def state(self):
        return ServingState(TargetVersions("1"), ("1",), {}, (), {})


@asynccontextmanager
async def listening(replicas=None, host="127.0.0.1", **settings):
    """A server with a gateway, and its port. `server.counters` are the counters of the gateway."""
    family = 10 if ":" in host else 2
    with create_server((host, 0), family=family) as free:
        port = free.getsockname()[1]
    settings = ServeConfig(host=host, port=port, **settings)
    gateway = Gateway(settings, replicas or FakeReplicas(), FakeController(), None, "g1")
    server = HttpServer(build_app(gateway), settings)
    server.counters = gateway.counters.counts
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop()


async def send(port, text, body=b"", host="127.0.0.1", source=None):
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(host, port, local_addr=local, limit=2**12)
    writer.write(text.encode() + body)
    return reader, writer


async def status(reader):
    return int((await reader.readline()).split()[1])


async def request(port, path="/healthz", **options):
    reader, writer = await send(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", **options)
    line, *_ = (await reader.read()).partition(b"\r\n")
    writer.close()
    return int(line.split()[1])


async def ended(reader, seconds=5):
    """Whether the server ends a connection in time."""
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(2**16):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_server_listens_on_loopback_addresses(host):
    async def run():
        async with listening(host=host) as (_, port):
            return await request(port, host=host)

    assert asyncio.run(run()) == 200


def test_a_slow_body_is_refused_and_takes_no_place():
    async def run():
        replicas = FakeReplicas()
        async with listening(replicas, transfer_timeout_s=0.5, max_pending_images=1) as (_, port):
            slow = [await send(port, HEAD.format(1000), b"\xff\xd8" * 5) for _number in range(8)]
            await asyncio.sleep(0.1)
            body = picture()
            reader, _writer = await send(port, HEAD.format(len(body)), body)
            honest = await status(reader)
            return honest, [await status(reader) for reader, _ in slow], replicas.started

    assert asyncio.run(run()) == (200, [408] * 8, 1)


def test_bodies_are_limited_in_memory_and_a_client_leaves_room_for_others():
    async def run():
        async with listening(transfer_timeout_s=5.0, max_pending_mib=2.0, max_request_mib=1.0) as (_, port):
            greedy = [
                await send(port, HEAD.format(2**20), b"\xff\xd8" + b"x" * (2**20 - 3), source="127.0.0.2")
                for _ in range(4)
            ]
            await asyncio.sleep(0.5)
            body = picture()
            reader, _writer = await send(port, HEAD.format(len(body)), body, source="127.0.0.3")
            honest, statuses = await status(reader), []
            for greedy_reader, _ in greedy:
                try:
                    async with asyncio.timeout(0.2):
                        statuses.append(await status(greedy_reader))
                except TimeoutError:
                    statuses.append(None)
            return honest, statuses

    honest, greedy = asyncio.run(run())
    assert honest == 200
    assert greedy.count(429) >= 2


def test_a_slow_header_ends_the_connection(monkeypatch):
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.3)

    async def run():
        async with listening() as (server, port):
            silent, _ = await send(port, "")
            slow, _ = await send(port, "GET /healthz HTTP/1.1\r\nX: ")
            assert await request(port) == 200
            ends = await ended(silent), await ended(slow)
            return ends, server.limits.connections.used

    assert asyncio.run(run()) == ((True, True), 0)


def test_a_large_header_ends_the_connection():
    async def run():
        async with listening() as (_, port):
            reader, writer = await send(port, "GET /healthz HTTP/1.1\r\nX: ")
            for _ in range(100):
                writer.write(b"x" * 2**14)
                await asyncio.sleep(0)
            return await ended(reader)

    assert asyncio.run(run())


CHUNKED = "POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("repeated", [b"X: y\r\n" * 2000, b"x" * 2**14], ids=["many lines", "one line"])
@pytest.mark.parametrize("body", [b"", b"4\r\n\xff\xd8\xff\xe0\r\n"], ids=["no body", "body"])
def test_large_trailers_of_a_body_end_the_connection(repeated, body):
    async def run():
        async with listening() as (_, port):
            reader, writer = await send(port, CHUNKED, body + b"0\r\nX: ")
            await asyncio.sleep(0.1)
            for _ in range(100):
                writer.write(repeated)
                await asyncio.sleep(0)
            return await ended(reader, 3)

    assert asyncio.run(run())


def test_a_body_in_small_chunks_with_a_trailer_is_complete():
    async def run():
        body, replicas = picture(kind="PNG"), FakeReplicas()
        chunks = b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in body)
        assert len(chunks) > http_server.MAX_HEADER_BYTES
        async with listening(replicas) as (_, port):
            reader, _writer = await send(port, CHUNKED.replace("jpeg", "png"), chunks + b"0\r\nX: y\r\n\r\n")
            return await status(reader)

    assert asyncio.run(run()) == 200


def test_blank_lines_do_not_keep_a_connection_open(monkeypatch):
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.5)

    async def run():
        async with listening() as (server, port):
            reader, writer = await send(port, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await status(reader) == 200
            for _ in range(15):
                writer.write(b"\r\n")
                await asyncio.sleep(0.1)
            return server.limits.connections.used

    assert asyncio.run(run()) == 0


def test_a_blank_line_after_a_body_does_not_end_the_request(monkeypatch):
    """Some clients send a line break after the body of a POST request."""
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.2)

    async def run():
        body = picture()
        async with listening(FakeReplicas(delay=0.6)) as (_, port):
            reader, _writer = await send(port, HEAD.format(len(body)), body + b"\r\n")
            return await status(reader)

    assert asyncio.run(run()) == 200


def test_a_slow_reader_ends_and_a_fast_one_gets_all():
    async def run():
        body = picture()
        async with listening(FakeReplicas(LARGE), transfer_timeout_s=0.5) as (server, port):
            slow = [await send(port, HEAD.format(len(body)), body) for _ in range(4)]
            fast, _ = await send(
                port, HEAD.format(len(body)).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"), body
            )
            received = await fast.read()
            assert server.limits.unread.used > 0
            await asyncio.sleep(1.0)
            unread = server.limits.unread.used
            return received, unread, [await ended(reader) for reader, _ in slow]

    received, unread, ends = asyncio.run(run())
    assert received.endswith(LARGE)
    assert unread == 0
    assert all(ends)


def test_a_client_has_at_most_half_of_the_connections(monkeypatch):
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 20)

    async def run():
        async with listening() as (server, port):
            greedy = [await send(port, "", source="127.0.0.2") for _ in range(30)]
            await asyncio.sleep(0.2)
            honest = await request(port, source="127.0.0.3")
            used = server.limits.connections.used
            for _, writer in greedy:
                writer.close()
            await asyncio.sleep(0.2)
            return honest, used, server.limits.connections.used

    honest, used, left = asyncio.run(run())
    assert honest == 200
    assert used == 10
    assert left == 0


async def statuses(counters):
    """The number of requests by status, once there is one."""
    async with asyncio.timeout(5):
        while not (counts := {key[1][1]: count for key, count in counters.items() if key[0] == "segray_requests"}):
            await asyncio.sleep(0.01)
    return counts


def test_the_work_of_a_client_that_disconnects_is_dropped_and_counted_as_499(capfd):
    async def run():
        replicas, body = FakeReplicas(delay=20.0), picture()
        async with listening(replicas) as (server, port):
            _, writer = await send(port, HEAD.format(len(body)), body)
            async with asyncio.timeout(5):
                while not replicas.started:
                    await asyncio.sleep(0.01)
                writer.transport.abort()
                while not replicas.dropped:
                    await asyncio.sleep(0.01)
            return await statuses(server.counters)

    started_at = time.perf_counter()
    assert asyncio.run(run()) == {"499": 1}
    assert time.perf_counter() - started_at < 10
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("end", ["abort", "write_eof"])
@pytest.mark.parametrize(
    ("head", "part"),
    [(HEAD.format(2**20), b"\xff\xd8"), (CHUNKED, b"2\r\n\xff\xd8\r\n"), (HEAD.format(2**20), b"")],
    ids=["length", "chunked", "header only"],
)
def test_an_upload_that_breaks_off_is_counted_as_499(head, part, end, capfd):
    async def run():
        replicas = FakeReplicas()
        async with listening(replicas) as (server, port):
            _, writer = await send(port, head, part)
            await asyncio.sleep(0.1)
            writer.write_eof() if end == "write_eof" else writer.transport.abort()
            return await statuses(server.counters), replicas.started

    assert asyncio.run(run()) == ({"499": 1}, 0)
    assert "Traceback" not in capfd.readouterr().err


def test_an_address_in_use_is_an_error(monkeypatch):
    monkeypatch.setattr(http_server, "BIND_ATTEMPTS", 2)
    monkeypatch.setattr(http_server, "BIND_RETRY_S", 0.01)

    async def run():
        async with listening() as (_, port):
            settings = ServeConfig(port=port)
            await HttpServer(
                build_app(Gateway(settings, FakeReplicas(), FakeController(), None, "g2")), settings
            ).start()

    with pytest.raises(ServingError, match="cannot listen on serve.port"):
        asyncio.run(run())


def test_trusted_proxies_name_the_client():
    async def run(**settings):
        async with listening(**settings) as (server, port):
            limits = server.limits
            forwarded = "GET /readyz HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.7\r\nConnection: close\r\n\r\n"
            reader, _ = await send(port, forwarded)
            content = (await reader.read()).partition(b"\r\n\r\n")[2]
            return limits.client_name(("127.0.0.1", 5)), json.loads(content)["ready"]

    assert asyncio.run(run()) == ("127.0.0.1", True)
    assert asyncio.run(run(trusted_proxies=("127.0.0.1",))) == ("127.0.0.1:5", True)


@pytest.mark.parametrize(("start", "expected"), [(b"%!PS-Adobe-3.0", 415), (b"hello world", 422)])
def test_a_body_that_is_no_image_is_refused_before_its_end(start, expected):
    async def run():
        async with listening() as (_, port):
            reader, _writer = await send(port, HEAD.format(2**20), start)
            return await asyncio.wait_for(status(reader), 5)

    assert asyncio.run(run()) == expected


def test_pages_take_little_time_of_the_event_loop():
    async def run():
        async with listening() as (_, port):
            assert [await request(port, path) for path in ("/", "/docs", "/healthz")] == [200] * 3
            seconds = []
            for path in ("/healthz", "/", "/docs"):
                started_at = time.process_time()
                for _ in range(20):
                    await request(port, path)
                seconds.append((time.process_time() - started_at) / 20)
            return seconds

    healthz, page, docs = asyncio.run(run())
    assert max(page, docs) < healthz + 0.003
