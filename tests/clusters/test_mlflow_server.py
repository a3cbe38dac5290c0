"""MLflow's server on a cluster, started by its script: without a password nothing is read or written."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests
from mlflow.tracking import MlflowClient

from segray.core.errors import RegistryError
from segray.promotion.aliases import apply_change, get_aliases
from segray.promotion.plan import plan_promotion
from segray.tracking.client import connect_mlflow
from segray.tracking.registry import open_checkpoint, register_checkpoint
from tests.tracking.conftest import free_port

ROOT = Path(__file__).parents[2]
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A home folder like the head's, with a running server."""
    home = tmp_path_factory.mktemp("head")
    (home / "segray").mkdir()
    (home / "segray" / "clusters").symlink_to(ROOT / "clusters")
    (home / "segray-venv").symlink_to(ROOT / ".venv")
    shared = home / "shared"
    (shared / "mlflow").mkdir(parents=True)
    lines = {"SEGRAY_SHARED": shared, "SEGRAY_MLFLOW_STORE": f"sqlite:///{shared}/mlflow/mlflow.db"}
    lines |= {"RAY_HEAD_IP": "127.0.0.1", "SEGRAY_MLFLOW_PORT": free_port()}
    (home / "segray.env").write_text("".join(f"export {name}={value}\n" for name, value in lines.items()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    machine = SimpleNamespace(home=home, shared=shared, environment=environment | {"HOME": str(home)})
    try:
        started = start(machine)
        assert started.returncode == 0, started.stderr
        machine.variables = variables(machine)
        machine.url = machine.variables["MLFLOW_TRACKING_URI"]
        wait_for(machine)
        yield machine
    finally:
        for process in servers(machine):
            process.terminate()
        for process in psutil.wait_procs(servers(machine), 20)[1]:
            process.kill()


def start(machine):
    command = ["bash", machine.home / "segray" / "clusters" / "mlflow-server.sh"]
    return subprocess.run(command, env=machine.environment, capture_output=True, text=True, timeout=60, check=False)


def variables(machine):
    """The variables that the processes of a node have."""
    command = ["bash", "-c", ". ~/segray/clusters/environment.sh && env -0"]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, timeout=60, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.split("\0"))
    return {name: found[name] for name in VARIABLES if name in found}


def wait_for(machine):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        with suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"{machine.url}/health", timeout=2).status == 200:
                return
        time.sleep(0.3)
    raise AssertionError((machine.home / "mlflow-server.log").read_text()[-3000:])


def servers(machine):
    """The processes that the script started: no others have this home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(machine.home):
                found.append(process)
    return found


@pytest.fixture
def client(head, monkeypatch):
    """A client in a process of the cluster."""
    for name, value in head.variables.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(head.url, head.url)


REQUESTS = [
    ("GET", "/"),
    ("GET", "/api/2.0/mlflow/registered-models/search"),
    ("GET", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0"),
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("POST", "/api/2.0/mlflow/registered-models/alias"),
    ("POST", "/graphql"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=0"),
    ("GET", "/get-artifact?path=model/MLmodel&run_uuid=0"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/model/loader.py"),
    ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/0"),
    ("POST", "/api/2.0/mlflow/users/create"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize("login", [None, ("segray", "password1234"), ("admin", "password1234")])
def test_a_request_without_the_password_is_refused(head, method, path, login):
    answer = requests.request(method, head.url + path, json={}, auth=login, timeout=20, allow_redirects=False)
    assert answer.status_code == 401
    assert not list((head.shared / "mlflow").rglob("loader.py"))


def test_a_process_of_the_cluster_tracks_registers_downloads_and_promotes(head, client, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    run_id = client.create_run(client.create_experiment("tests")).info.run_id
    client.log_metric(run_id, "val/miou", 0.5)
    version = register_checkpoint(client, run_id, folder, "streets", ["challenger"])
    for reference in ("models:/streets@challenger", f"models:/streets/{version}", f"runs:/{run_id}/model"):
        with open_checkpoint(reference, head.url) as checkpoint_dir:
            assert (checkpoint_dir / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    apply_change(client, plan_promotion("streets", get_aliases(client, "streets"), version))
    assert get_aliases(client, "streets")["champion"] == version
    assert list(tmp_path.iterdir()) == []  # no download remains


def test_a_process_without_the_password_is_told_what_it_needs(head, client, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(RegistryError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        connect_mlflow(head.url, "model models:/streets@champion")


def test_the_password_is_in_one_file_that_only_its_owner_can_read(head):
    password = head.variables["MLFLOW_TRACKING_PASSWORD"]
    assert len(password) == 48
    found = subprocess.run(["grep", "-rlF", password, head.home], capture_output=True, text=True, check=False)
    assert found.stdout.split() == [str(head.shared / "mlflow" / "credentials")]
    for file in (head.shared / "mlflow" / "credentials", head.shared / "mlflow" / "accounts.db"):
        assert file.stat().st_mode & 0o077 == 0
    processes = servers(head)
    assert processes
    assert not any(password in word for process in processes for word in process.cmdline())


def test_a_running_server_is_left_alone(head):
    before = (head.shared / "mlflow" / "credentials").read_text()
    assert start(head).returncode == 0
    assert (head.shared / "mlflow" / "credentials").read_text() == before


def test_another_server_does_not_receive_the_password(head):
    other = SimpleNamespace(environment=head.environment | {"MLFLOW_TRACKING_URI": "https://mlflow.example.com"})
    command = ["bash", "-c", ". ~/segray/clusters/environment.sh && env"]
    done = subprocess.run(command, env=other.environment, capture_output=True, text=True, timeout=60, check=True)
    assert "MLFLOW_TRACKING_URI=https://mlflow.example.com" in done.stdout
    assert "MLFLOW_TRACKING_PASSWORD" not in done.stdout
