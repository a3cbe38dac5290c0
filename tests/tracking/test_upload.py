"""Uploading: in order and once, from where it stopped, into a real MLflow store and a real server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from mlflow.tracking import MlflowClient

from segray.errors import RegistryError
from segray.tracking.journal import Journal
from segray.tracking.upload import Upload, Uploading

RUN = {
    "key": "the run",
    "name": "mine",
    "experiment": "tests",
    "params": {"optim.lr": 1e-3, "data.root": "x" * 7000},
    "tags": {},
    "dataset": {"name": "streets", "digest": "abc", "root": "/data"},
}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", **RUN)
    for step in range(1, 4):
        journal.write("metrics", step=step, values={"train/loss": 1 / step, "val/iou/door; double": 0.5})
    return journal


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path}/mlflow.db"


def history(uri, run_id, name="train/loss"):
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, name)]


def test_records_arrive_once_however_often_they_are_sent(tmp_path, journal, store):
    first = Upload(tmp_path, store)
    first.drain()
    expected = [(step, 1 / step) for step in range(1, 4)]
    assert history(store, first.run_id) == expected
    assert history(store, first.run_id, "val/iou/door_ double") == [(step, 0.5) for step in range(1, 4)]
    Upload(tmp_path, store).drain()
    (tmp_path / "uploaded.json").unlink()  # as if it was killed before it noted how far it came
    again = Upload(tmp_path, store)
    again.drain()
    assert again.run_id == first.run_id
    assert history(store, first.run_id) == expected
    journal.write("end", status="FINISHED")
    again.drain()
    assert MlflowClient(store).get_run(first.run_id).info.status == "FINISHED"


def test_artifacts_lie_beside_the_database_wherever_the_process_stands(tmp_path, journal, store, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    journal.write("text", name="config.json", text="{}")
    Upload(tmp_path, store).drain()
    assert list(tmp_path.glob("mlartifacts/**/config.json"))
    assert list(elsewhere.iterdir()) == []


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
        started.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ, start_new_session=True))
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
        stop(process)


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, 15)  # the server and its own workers, in the session made for them
        process.wait(20)


def test_a_server_that_goes_away_and_comes_back_gets_everything_once(tmp_path, journal, serve):
    process, uri = serve()
    said = []
    upload = Upload(tmp_path, uri)
    upload.drain()
    stop(process)
    journal.write("metrics", step=4, values={"train/loss": 0.25})
    uploading = Uploading(upload, said.append, every_s=0.05)
    uploading.start()
    while not said:
        time.sleep(0.05)
    time.sleep(1)
    assert not uploading.finish()
    assert len(said) == 1
    assert uri in said[0]
    with pytest.raises(RegistryError, match="does not take records"):
        upload.drain()
    serve()
    later = Upload(tmp_path, uri)
    later.drain()
    assert later.run_id == upload.run_id
    assert history(uri, later.run_id) == [(step, 1 / step) for step in range(1, 5)]
    state = json.loads((tmp_path / "uploaded.json").read_text())
    assert state["offset"] == journal.path.stat().st_size
