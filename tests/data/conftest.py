"""Fixtures of the data tests: S3-compatible servers on the loopback interface."""

import os
import socket
import subprocess
import sys
import time

import pytest


def free_port():
    with socket.socket() as server_socket:
        server_socket.bind(("127.0.0.1", 0))
        return server_socket.getsockname()[1]


@pytest.fixture(scope="module")
def s3_server():
    """Starts moto's S3 as often as it is called, each with an environment of its own; returns its URL."""
    started = []

    def start(**environment):
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=os.environ | environment, **quiet))
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            assert started[-1].poll() is None
            time.sleep(0.1)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()
