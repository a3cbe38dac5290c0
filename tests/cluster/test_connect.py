"""Clusters that cannot be joined."""

import socket
import time

import pytest
import ray

from segray.cluster.connect import connect
from segray.core.errors import CapacityError


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_is_no_drivers_is_told_with_what_takes_it(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CapacityError, match=r"submit this command with `ray job submit .*, or set .* HEAD:6379"):
        connect()


def test_a_head_that_is_not_there_is_told_in_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(
        CapacityError, match=f"connect to the Ray cluster at 127.0.0.1:{port}: Connection refused; start the"
    ):
        connect()
    assert time.monotonic() - began < 10


def test_a_port_of_somebody_else_is_told_in_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(CapacityError, match="does not respond like a Ray head within 8 s; start the head"):
            connect()
    assert time.monotonic() - began < 15
