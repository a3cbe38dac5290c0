"""What the tests of tracking share: a real MLflow server that can go away."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def serve(tmp_path):
    """Starts MLflow servers of one store on one port, as often as it is called."""
    started = []
    port = free_port()

    def start():
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(tmp_path / "artifacts")]
        started.append(Server(command, cwd=tmp_path, env=os.environ, start_new_session=True))
        uri = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return started[-1], uri
        raise AssertionError("the MLflow server did not start in a minute")

    yield start
    for process in started:
        process.end()


class Server(subprocess.Popen):
    """A server with workers of its own, in a session made for them."""

    def end(self):
        """Ends all of them."""
        if self.poll() is None:
            os.killpg(self.pid, 15)
            self.wait(20)
