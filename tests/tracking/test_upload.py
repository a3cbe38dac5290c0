"""Uploading: in order and once, from where it stopped, into a real MLflow store and a real server."""

import json
import time

import pytest
from mlflow.tracking import MlflowClient

from segray.errors import RegistryError
from segray.tracking.journal import JOURNAL, Journal, Tail
from segray.tracking.upload import MOST_METRICS, Upload, Uploading, batched

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


def test_a_server_that_goes_away_and_comes_back_gets_everything_once(tmp_path, journal, serve):
    process, uri = serve()
    said = []
    upload = Upload(tmp_path, uri)
    upload.drain()
    process.end()
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


def test_metrics_are_sent_as_many_at_a_time_as_mlflow_takes_and_in_order(tmp_path):
    journal = Journal(tmp_path)
    kinds = ["run", *["metrics"] * 5, "text", "metrics", "end"]
    for step, kind in enumerate(kinds):
        journal.write(kind, step=step, values={f"m{number}": 1.0 for number in range(400)})
    tail = Tail(tmp_path / JOURNAL)
    batches = list(batched(tail))
    assert [[record["step"] for record in records] for records, _ in batches] == [
        [0],
        [1, 2],
        [3, 4],
        [5],
        [6],
        [7],
        [8],
    ]
    assert all(400 * len(records) <= MOST_METRICS for records, _ in batches)
    for number, (_, offset) in enumerate(batches):  # from behind each, the rest
        rest = [record["step"] for record in Tail(tmp_path / JOURNAL, offset).read()]
        assert rest == [record["step"] for records, _ in batches[number + 1 :] for record in records]


def test_a_record_of_more_metrics_than_mlflow_takes_arrives(tmp_path, store):
    journal = Journal(tmp_path)
    journal.write("run", **RUN)
    journal.write("metrics", step=1, values={f"val/iou/{number}": 0.5 for number in range(1500)})
    upload = Upload(tmp_path, store)
    upload.drain()
    assert len(MlflowClient(store).get_run(upload.run_id).data.metrics) == 1500


def test_a_run_that_goes_on_is_running_again_and_the_same(tmp_path, journal, store):
    journal.write("end", status="FAILED")
    first = Upload(tmp_path, store)
    first.drain()
    journal.write("resumed")
    again = Upload(tmp_path, store)
    again.drain()
    assert again.run_id == first.run_id
    assert MlflowClient(store).get_run(first.run_id).info.status == "RUNNING"
