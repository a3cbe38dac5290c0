"""Uploading: in order and once, from where it stopped, into a real MLflow store and a real server."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from segray.core.errors import RegistryError
from segray.tracking import metric_names
from segray.tracking import uploader as module
from segray.tracking.journal import JOURNAL, Journal, JournalReader
from segray.tracking.metric_names import MAX_METRICS
from segray.tracking.uploader import RunUploader, UploadThread, batch_records

DOUBLE = "val/iou/door_ double"  # MLflow knows no semicolons
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
def store(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def history(uri, run_id, name="train/loss"):
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, name)]


def test_records_arrive_once_however_often_they_are_sent(tmp_path, journal, store):
    first = RunUploader(tmp_path, store)
    first.flush()
    expected = [(step, 1 / step) for step in range(1, 4)]
    assert history(store, first.run_id) == expected
    assert history(store, first.run_id, DOUBLE) == [(step, 0.5) for step in range(1, 4)]
    RunUploader(tmp_path, store).flush()
    (tmp_path / "uploaded.json").unlink()  # as if it was killed before it noted how far it came
    again = RunUploader(tmp_path, store)
    again.flush()
    assert again.run_id == first.run_id
    assert history(store, first.run_id) == expected
    journal.write("end", status="FINISHED")
    again.flush()
    assert MlflowClient(store).get_run(first.run_id).info.status == "FINISHED"


def test_artifacts_lie_beside_the_database_wherever_the_process_stands(tmp_path, journal, store, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    journal.write("text", name="config.json", text="{}")
    RunUploader(tmp_path, store).flush()
    assert list(tmp_path.glob("mlartifacts/**/config.json"))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_gets_everything_once(tmp_path, journal, serve):
    process, uri = serve()
    said = []
    upload = RunUploader(tmp_path, uri)
    upload.flush()
    process.end()
    journal.write("metrics", step=4, values={"train/loss": 0.25})
    uploading = UploadThread(upload, said.append, interval_s=0.05)
    uploading.start()
    deadline = time.monotonic() + 60
    while not said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    assert not uploading.close()
    assert len(said) == 1
    assert uri in said[0]
    with pytest.raises(RegistryError, match="upload to MLflow at .* failed"):
        upload.flush()
    serve()
    later = RunUploader(tmp_path, uri)
    later.flush()
    assert later.run_id == upload.run_id
    assert history(uri, later.run_id) == [(step, 1 / step) for step in range(1, 5)]
    state = json.loads((tmp_path / "uploaded.json").read_text())
    assert state["offset"] == journal.path.stat().st_size


def test_metrics_are_sent_as_many_at_a_time_as_mlflow_takes_and_in_order(tmp_path):
    journal = Journal(tmp_path)
    kinds = ["run", *["metrics"] * 5, "text", "metrics", "end"]
    for step, kind in enumerate(kinds):
        values = {f"m{number}": 1.0 for number in range(400)}
        journal.write(kind, step=step, name="config.json", text="{}", values=values)
    tail = JournalReader(tmp_path / JOURNAL)
    batches = list(batch_records(tail))
    assert [[record["step"] for record in records] for records, _ in batches] == [
        [0],
        [1, 2],
        [3, 4],
        [5],
        [6],
        [7],
        [8],
    ]
    assert all(400 * len(records) <= MAX_METRICS for records, _ in batches)
    for number, (_, offset) in enumerate(batches):  # from behind each, the rest
        rest = [record["step"] for record in JournalReader(tmp_path / JOURNAL, offset).read()]
        assert rest == [record["step"] for records, _ in batches[number + 1 :] for record in records]


def test_a_record_of_more_metrics_than_mlflow_takes_arrives(tmp_path, store):
    journal = Journal(tmp_path)
    journal.write("run", **RUN)
    journal.write("metrics", step=1, values={f"val/iou/{number}": 0.5 for number in range(1500)})
    upload = RunUploader(tmp_path, store)
    upload.flush()
    assert len(MlflowClient(store).get_run(upload.run_id).data.metrics) == 1500


def test_a_run_that_goes_on_is_running_again_and_the_same(tmp_path, journal, store):
    journal.write("end", status="FAILED")
    first = RunUploader(tmp_path, store)
    first.flush()
    journal.write("resumed")
    again = RunUploader(tmp_path, store)
    again.flush()
    assert again.run_id == first.run_id
    assert MlflowClient(store).get_run(first.run_id).info.status == "RUNNING"


def test_what_the_store_refuses_is_left_out_and_said_and_the_rest_arrives(tmp_path, journal, store):
    said = []
    journal.write("image", file="predictions/step-000003.png", place="predictions")
    journal.write("model", folder="step-000003", name="segray", aliases=["challenger"])
    journal.write("tag", name="t" * 300, value="x")
    journal.write("metrics", step=4, values={"train/loss": 0.25})
    journal.write("metrics", step=5, values={"x" * 200 + "\n/../": 0.5, "train/loss": 0.2})
    upload = RunUploader(tmp_path, store, said.append)
    upload.flush()
    assert history(store, upload.run_id)[3:] == [(4, 0.25), (5, 0.2)]
    assert [line.partition(";")[0].partition(":")[0] for line in said] == [
        f"{tmp_path}/predictions/step-000003.png does not exist",
        f"{tmp_path}/step-000003 does not exist",
        "MLflow rejected a record of kind tag",
    ]


def test_one_refused_record_among_metrics_costs_itself_alone(tmp_path, journal, store, monkeypatch):
    monkeypatch.setattr(
        metric_names, "_valid_name", lambda name: name
    )  # names as they come: MLflow refuses the semicolon
    journal.write("metrics", step=4, values={"train/loss": 0.25})
    said = []
    upload = RunUploader(tmp_path, store, said.append)
    upload.flush()
    assert history(store, upload.run_id) == [(4, 0.25)]
    assert len(said) == 3
    assert all("MLflow rejected a record of kind metrics: " in line for line in said)


@pytest.mark.parametrize("name", ["car/", "..", "a//b", "a+b", "a*b", "x" * 300, "/", "."])
def test_every_class_has_a_metric_of_its_own_and_mlflow_takes_it(tmp_path, journal, store, name):
    journal.write("metrics", step=9, values={f"val/iou/{name}": 0.5, "val/iou/a_b": 0.25})
    upload = RunUploader(tmp_path, store)
    upload.flush()
    taken = MlflowClient(store).get_run(upload.run_id).data.metrics
    assert sorted(value for key, value in taken.items() if key not in ("train/loss", DOUBLE)) == [0.25, 0.5]


def test_a_run_that_was_moved_is_uploaded_from_where_it_lies(tmp_path, journal, store):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "step-000003.png").write_bytes(b"png")
    journal.write("image", file="predictions/step-000003.png", place="predictions")
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    tmp_path.mkdir()  # the store is to be where it was
    upload = RunUploader(moved, store)
    upload.flush()
    assert list(tmp_path.glob("mlartifacts/**/predictions/step-000003.png"))


def test_another_store_gets_everything_whatever_the_first_has(tmp_path, journal, store):
    RunUploader(tmp_path, store).flush()
    other = f"sqlite:///{tmp_path}/other.db"
    upload = RunUploader(tmp_path, other)
    upload.flush()
    assert history(other, upload.run_id) == [(step, 1 / step) for step in range(1, 4)]


def test_what_was_cut_off_behind_the_run_itself_arrives_the_next_time(tmp_path, journal, store, monkeypatch):
    def away(*_args, **_kwargs):
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        with pytest.raises(RegistryError, match="gone"):
            RunUploader(tmp_path, store).flush()
    upload = RunUploader(tmp_path, store)
    upload.flush()
    run = MlflowClient(store).get_run(upload.run_id)
    assert run.data.params["optim.lr"] == "0.001"
    assert [found.dataset.digest for found in run.inputs.dataset_inputs] == ["abc"]


@pytest.mark.parametrize("state", ["", "{}", "[]", '{"offset": '])
def test_a_record_of_what_is_uploaded_that_cannot_be_read_costs_nothing_but_time(tmp_path, journal, store, state):
    RunUploader(tmp_path, store).flush()
    (tmp_path / "uploaded.json").write_text(state)
    upload = RunUploader(tmp_path, store)
    upload.flush()
    assert history(store, upload.run_id) == [(step, 1 / step) for step in range(1, 4)]


def test_a_journal_without_its_run_is_refused(tmp_path, store):
    Journal(tmp_path).write("metrics", step=1, values={"train/loss": 1.0})
    with pytest.raises(RegistryError, match="does not start with a record of kind run"):
        RunUploader(tmp_path, store).flush()


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("sqlite:////data/mlflow.db", "/data/mlartifacts"),
        ("sqlite+pysqlite:////data/mlflow.db", "/data/mlartifacts"),
        ("postgresql+psycopg2://me:secret@host:5432/mlflow", "/runs/mlartifacts"),
        ("http://host:5000", None),
    ],
)
def test_artifacts_of_a_database_lie_in_an_absolute_place(uri, place):
    assert module._artifact_location(uri, Path("/runs/mine")) == place


def test_a_password_is_neither_said_nor_kept(tmp_path, journal):
    upload = RunUploader(tmp_path, "http://me:secret@127.0.0.1:9")
    with pytest.raises(RegistryError) as raised:
        upload.flush()
    assert "http://me:***@127.0.0.1:9" in str(raised.value)
    assert "secret" not in str(raised.value)
    upload._save(0)  # as after records that it took
    assert "http://me:***@127.0.0.1:9" in (tmp_path / "uploaded.json").read_text()
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_whatever_goes_wrong_the_thread_goes_on(tmp_path, journal, store, monkeypatch):
    upload, said = RunUploader(tmp_path, store), []
    monkeypatch.setattr(upload, "flush", lambda: 1 / 0)
    uploading = UploadThread(upload, said.append, interval_s=0.01)
    uploading.start()
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert uploading.is_alive()
    assert not uploading.close()
    assert said == [
        "MLflow: ZeroDivisionError: division by zero; training continues, and its records stay in the journal."
    ]


def test_a_database_that_is_gone_is_said_in_a_line(tmp_path, journal, capfd):
    (tmp_path / "db").mkdir()
    upload = RunUploader(tmp_path, f"sqlite:///{tmp_path}/db/mlflow.db")
    upload.flush()
    shutil.rmtree(tmp_path / "db")
    journal.write("metrics", step=4, values={"train/loss": 0.25})
    capfd.readouterr()
    with pytest.raises(RegistryError, match=r"upload to MLflow at \S+ failed: \(sqlite3.OperationalError\) [^\n]+$"):
        upload.flush()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("state", ["[" * 100_000 + "]" * 100_000, "[1]", "{", "\xff"])
def test_a_damaged_state_of_the_last_upload_starts_from_the_beginning(state, tmp_path):
    (tmp_path / module.STATE_FILE).write_text(state, encoding="latin-1")
    assert RunUploader(tmp_path, "sqlite:///unused.db").run_id is None


def test_a_pipe_as_state_of_the_last_upload_starts_from_the_beginning(tmp_path):
    os.mkfifo(tmp_path / module.STATE_FILE)
    assert RunUploader(tmp_path, "sqlite:///unused.db").run_id is None
