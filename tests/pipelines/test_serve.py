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

from segray.cli.main import run
from segray.tracking.registry import register_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(empty_store, folder, tmp_path):
    """A registry with one version, the champion."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    run = client.create_run(client.create_experiment("serving", str(tmp_path / "artifacts")))
    register_checkpoint(client, run.info.run_id, folder, "streets", ["champion"])
    return uri


def words(*more):
    return [sys.executable, str(ROOT / "pipelines/serve.py"), "--name", "streets", *map(str, more)]


def said_by(process):
    """The next line it prints; of Ray's daemons, whose words all drivers of a cluster get, none."""
    while (line := process.stdout.readline()).startswith("\x1b[33m(raylet)"):
        pass
    return line


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_end(ray_cluster, store, tmp_path):
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    command = words("--serve.port", port, "--serve.max_replicas", 1)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = [said_by(process) for _ in range(3)]
            assert said[0].split() == ["model", "streets", "version", "1,", "alias", "champion"]
            assert said[1].split() == ["url", f"http://127.0.0.1:{port}"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                assert answer.status == 200
            client = MlflowClient(store, store)
            client.delete_registered_model_alias("streets", "champion")
            assert "champion" in said_by(process)
            client.set_registered_model_alias("streets", "champion", "1")
            assert said_by(process) == "all problems are resolved.\n"
            process.send_signal(signal.SIGTERM)
            assert said_by(process) == "the server has stopped.\n"
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--alias", "staging"], "champion is 1"),
        (["--name", "roads"], "registered models: streets"),
        (["--canary", "2"], "serve.canary is '2'"),
        (["--serve.token_file", "none-there"], "cannot read serve.token_file none-there"),
        (["--serve.replicas", "1000"], "serve.replicas is 1000"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(ray_cluster, store, tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*words()[1:], *more])
    with pytest.raises(SystemExit) as ended:
        run("serve")
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert said in told.err
    assert told.out == ""
    assert told.err.count("\n") == 1
