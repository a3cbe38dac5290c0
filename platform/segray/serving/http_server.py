"""HTTP server of the gateway: uvicorn, with limits for connections that are slow or greedy."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from segray.config import ServeConfig
from segray.core.errors import ServingError
from segray.core.numbers import MIB
from segray.serving.budget import SharedBudget, client_name

MAX_CONNECTIONS = 1024
"""Maximum number of open connections."""
MAX_HEADER_BYTES = 2**16
"""Maximum number of bytes of a header, of the trailers, or between two parts of a body. One read may exceed it."""
HEADER_TIMEOUT_S = 10.0
"""Maximum time in seconds between the first byte of a request, or the connection, and the end of its header."""
KEEP_ALIVE_S = 30
"""Time in seconds after which an idle connection is closed."""
BACKLOG = 2048
BIND_ATTEMPTS, BIND_RETRY_S = 20, 0.5


class ConnectionLimits:
    """Limits that all connections of a server share.

    Args:
        settings: serving configuration.

    Attributes:
        connections: budget of open connections.
        unread: budget of the bytes of responses that clients have not read yet.
        transfer_timeout_s: timeout of the transfer of a response in seconds.
    """

    def __init__(self, settings: ServeConfig) -> None:
        self.connections = SharedBudget(MAX_CONNECTIONS)
        self.unread = SharedBudget(settings.max_pending_mib * MIB)
        self.transfer_timeout_s = settings.transfer_timeout_s
        self._proxies = frozenset(settings.trusted_proxies)

    def client_name(self, address: tuple[str, int] | None) -> str:
        """Returns the name of a client in the budgets. Each connection of a reverse proxy is a client of its own."""
        if address is None:
            return ""
        host, port = address
        return f"{host}:{port}" if host in self._proxies else client_name(host)


class BoundedHttpProtocol(HttpToolsProtocol):
    """HTTP connection that is aborted if the client sends its header, or reads its response, too slowly.

    Args:
        limits: limits that all connections share.
        options: arguments of uvicorn's protocol.
    """

    def __init__(self, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._name = ""
        self._has_connection = False
        self._num_header_bytes = 0
        self._is_in_message = False
        self._num_unread = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection, and refuses it if its client has too many."""
        super().connection_made(transport)
        self._name = self._limits.client_name(self.client)
        self._has_connection = self._limits.connections.reserve(self._name, 1)
        if not self._has_connection:
            transport.abort()
            return
        self._start_read_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Returns what the connection has reserved."""
        self._stop_read_timer()
        self._finish_writing()
        if self._has_connection:
            self._has_connection = False
            self._limits.connections.release(self._name, 1)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses received bytes. Limits those that belong to no body, and the time that blank lines take."""
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self._num_header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()
        elif self._is_idle() and self._read_timer is None:  # a blank line has stopped uvicorn's timer
            self._start_read_timer()

    def on_message_begin(self) -> None:
        """Starts the timeout of a header."""
        super().on_message_begin()
        self._is_in_message = True
        self._start_read_timer()

    def on_headers_complete(self) -> None:
        """Stops the timeout of a header. The application limits the time of a body."""
        super().on_headers_complete()
        self._stop_read_timer()

    def on_body(self, body: bytes) -> None:
        """Stores a part of a body."""
        super().on_body(body)
        self._num_header_bytes = 0

    def on_message_complete(self) -> None:
        """Stops the timeout of a body that is not read."""
        super().on_message_complete()
        self._is_in_message = False
        self._num_header_bytes = 0
        self._stop_read_timer()

    def on_response_complete(self) -> None:
        """Limits the time in which the rest of a rejected body may arrive."""
        super().on_response_complete()
        if self._is_in_message:
            self._start_read_timer()

    def pause_writing(self) -> None:
        """Starts the timeout of a response that the client does not read as fast as it is written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.transfer_timeout_s, self.transport.abort)
        size = self.transport.get_write_buffer_size() - self._num_unread
        if self._limits.unread.reserve(self._name, size):
            self._num_unread += size
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        """Stops the timeout if the response is complete."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._finish_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, even if the client has not read the end of its response."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _is_idle(self) -> bool:
        """Returns `True` if no request is received or in progress."""
        return not self._is_in_message and (self.cycle is None or self.cycle.response_complete)

    def _finish_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._limits.unread.release(self._name, self._num_unread)
        self._num_unread = 0

    def _start_read_timer(self) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class HttpServer:
    """HTTP server in the event loop of the calling process.

    Args:
        app: ASGI application.
        settings: serving configuration.
    """

    def __init__(self, app: ASGIApp, settings: ServeConfig) -> None:
        self._settings, self.limits = settings, ConnectionLimits(settings)
        config = uvicorn.Config(
            app,
            http=partial(BoundedHttpProtocol, self.limits),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.request_timeout_s) + 1,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens on `serve.host` and `serve.port`.

        Raises:
            ServingError: the address is in use or does not exist.
        """
        listener = await self._listen()
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        self.check_health()

    async def stop(self) -> None:
        """Completes the requests in progress and closes all connections."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task

    def check_health(self) -> None:
        """Checks that the server runs.

        Raises:
            ServingError: it does not.
        """
        if self._task is None or self._task.done():
            raise ServingError("the HTTP server does not run.")

    async def _listen(self) -> socket.socket:
        """Returns a listening socket. A gateway that replaces a dead one waits until the address is free."""
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for _ in range(BIND_ATTEMPTS):
            try:
                return socket.create_server((host, port), family=family, backlog=BACKLOG)
            except OSError as error:
                problem = error
            await asyncio.sleep(BIND_RETRY_S)
        raise ServingError(f"cannot listen on serve.port {port} of serve.host {host} ({problem.strerror}).")


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the process."""
        yield
