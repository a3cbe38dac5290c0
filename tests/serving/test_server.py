"""The lifecycle of the server: its address, and what remains of it after an interrupted start."""

from socket import create_server

import pytest
from ray import serve

from segray import config
from segray.config import ServeConfig
from segray.core.errors import ConfigError
from segray.serving import server

from .conftest import MODEL


@pytest.fixture
def port():
    with create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")]
)
def test_a_loopback_address_may_be_ipv6(port, host, address):
    settings = ServeConfig(host=host, port=port)
    server._check_port(settings)
    assert server._server_url(settings) == f"http://{address}:{port}"


def test_a_port_in_use_is_refused():
    with create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on serve.port {port} of serve.host 127.0.0.1"):
            server._check_port(ServeConfig(port=port))


def test_an_interrupted_start_stops_ray_serve(ray_cluster, store, tmp_path, port, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "build_application", interrupt)
    tracking = {"uri": store.uri, "model": MODEL}
    settings = config.build({"results": str(tmp_path), "tracking": tracking, "serve": {"port": port}})
    with pytest.raises(KeyboardInterrupt), server.running_server(settings):
        pass
    try:
        server._check_serve_not_running()
    finally:
        serve.shutdown()
