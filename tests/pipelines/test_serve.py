"""The server as a user starts and ends it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from socket import create_server

import pytest
from mlflow.tracking import MlflowClient

from segray import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(empty_store, folder, tmp_path):
    """A registry with one version, the champion."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    run = client.create_run(client.create_experiment("serving", str(tmp_path / "artifacts")))
    registry.register(client, run.info.run_id, folder, "streets", ["champion"])
    return uri


def words(*more):
    return [sys.executable, str(ROOT / "pipelines/serve.py"), "--name", "streets", *map(str, more)]


def refused(*more, cwd):
    done = subprocess.run(words(*more), cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_it_serves_until_it_is_told_to_end(ray_cluster, store, tmp_path):
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    command = words("--serve.port", port, "--serve.most_replicas", 1)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = [process.stdout.readline() for _ in range(3)]
            assert said[0].split() == ["serving", "streets,", "version", "1", "by", "the", "alias", "champion"]
            assert said[1].split() == ["at", f"http://127.0.0.1:{port}"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                assert answer.status == 200
            client = MlflowClient(store, store)
            client.delete_registered_model_alias("streets", "champion")
            assert "champion" in process.stdout.readline()
            client.set_registered_model_alias("streets", "champion", "1")
            assert process.stdout.readline() == "all is well again.\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "ended.\n"
            assert process.wait(30) == 0
        finally:
            process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1)
        except OSError:
            return
    pytest.fail("something still answers")


def test_what_cannot_be_served_is_refused_in_one_line(store, tmp_path):
    assert "champion is 1" in refused("--alias", "staging", cwd=tmp_path)
    assert "serve.canary" in refused("--canary", "2", cwd=tmp_path)
    assert "serve.token_file" in refused("--serve.token_file", "none-there", cwd=tmp_path)
