"""Versions: registered once a run, fetched by every kind of reference, loaded without a pickle."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from segray import config
from segray.core.classes import Classes
from segray.core.errors import RegistryError
from segray.data.images import decode_mask
from segray.inference.predictor import Predictor
from segray.models import checkpoint
from segray.models.build import build_model
from segray.tracking import model_card
from segray.tracking.client import connect_mlflow, with_retries
from segray.tracking.integrity import LOADER_MODULE
from segray.tracking.registry import available_hint, download_checkpoint, register_checkpoint
from segray.tracking.tags import LOCK_SUFFIX

CLASSES = Classes.from_names(["road", "car", "sky"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one run and one version, the run's id and its checkpoint."""
    place = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{place}/mlflow.db"
    client = MlflowClient(uri, uri)
    tags = {"segray.run": "k3y", "mlflow.source.git.commit": "c0mmit"}
    run_id = client.create_run(client.create_experiment("tests", str(place / "artifacts")), tags=tags).info.run_id
    client.log_inputs(run_id, [DatasetInput(Dataset("camvid", "d1g", "local", "{}"), [])])
    folder = place / "checkpoint"
    folder.mkdir()
    torch.manual_seed(0)
    settings = config.build({})
    model = build_model(settings, CLASSES)
    metrics = {"val/miou": 0.25, "val/miou_low": 0.125, "val/miou_high": 0.5}
    meta = checkpoint.Meta(step=1, metrics=metrics, confusion=[], dataset_digest="d1g", versions={})
    checkpoint.snapshot(model, {}, settings, CLASSES, meta).write(folder)
    version = register_checkpoint(client, run_id, folder, "streets", ["challenger"])
    return uri, client, run_id, folder, version


def test_a_run_registers_one_version_however_often_it_is_asked(store):
    _, client, run_id, folder, version = store
    assert register_checkpoint(client, run_id, folder, "streets", ["challenger"]) == version == "1"
    assert len(client.search_model_versions("name = 'streets'")) == 1


@pytest.mark.parametrize("reference", ["models:/streets@challenger", "models:/streets/1", "runs:/{run}/model"])
def test_every_kind_of_reference_finds_the_checkpoint(store, reference, tmp_path):
    uri, _, run_id, folder, _ = store
    found = download_checkpoint(reference.format(run=run_id), uri, tmp_path)
    assert (found / checkpoint.WEIGHTS).read_bytes() == (folder / checkpoint.WEIGHTS).read_bytes()
    assert not (found / checkpoint.STATE).exists()
    assert not list(found.parents[1].rglob("*.pkl"))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("models:/nothing@challenger", r"\(registered models: streets\)\.$"),
        ("models:/streets@champion", r"champion.* \(streets has versions 1; aliases: challenger is 1\)\.$"),
        ("models:/streets/9", r"9.* \(streets has versions 1; aliases: challenger is 1\)\.$"),
        ("models:/streets/new", r"new.* \(streets has versions 1; "),
        ("models:/streets", r"does not name a version.* \(streets has versions 1; "),
        ("models:/nothing", r"does not name a version.* \(registered models: streets"),
        ("runs:/0123456789abcdef/model", "cannot be loaded"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(store, reference, said, tmp_path):
    with pytest.raises(RegistryError, match=said):
        download_checkpoint(reference, store[0], tmp_path)


def test_a_lock_is_no_model(store, tmp_path):
    uri, client, *_ = store
    client.create_registered_model(f"streets{LOCK_SUFFIX}")
    try:
        with pytest.raises(RegistryError, match=r"registered models: streets\)"):
            download_checkpoint("models:/nothing/1", uri, tmp_path)
    finally:
        client.delete_registered_model(f"streets{LOCK_SUFFIX}")


def test_of_more_models_than_a_page_holds_all_are_named(empty_store, tmp_path):
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    for number in range(102):  # a page has 100
        client.create_registered_model(f"m{number:03d}")
    hint = available_hint(client, "models:/nothing/1")
    assert all(f"m{number:03d}" in hint for number in range(102))
    assert available_hint(client, "models:/m101/1") == " (m101 has versions none; aliases: none)."


def test_names_of_tags_and_aliases_load_no_mlflow():
    code = "import sys, segray.tracking.tags; print({'mlflow', 'sqlalchemy', 'requests'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_a_version_says_what_it_was_made_of(store):
    _, client, run_id, folder, version = store
    found = client.get_model_version("streets", version)
    parts = ("model.safetensors", "config.json", "classes.json", "meta.json")
    digest = sha256(b"".join(sha256((folder / part).read_bytes()).digest() for part in parts)).hexdigest()
    expected = {"segray.run": "k3y", "segray.dataset": "d1g", "segray.checkpoint": digest, "segray.git": "c0mmit"}
    files = json.loads(found.tags.pop("segray.files"))
    assert found.tags == expected
    assert {name: files[f"data/checkpoint/{name}"] for name in parts} == {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in parts
    }
    assert found.run_id == run_id
    for said in ("# streets", "SegFormer-B0", "camvid", "`d1g`", "| val |  | 0.2500 | [0.1250, 0.5000] |", "c0mmit"):
        assert said in found.description


def test_a_version_is_never_there_without_its_card_and_tags(store, monkeypatch):
    _, client, _, folder, _ = store
    run_id = client.create_run("1").info.run_id
    monkeypatch.setattr(model_card, "render_card", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        register_checkpoint(client, run_id, folder, "others", ["challenger"])
    assert client.search_model_versions("name = 'others'") == []
    monkeypatch.undo()
    register_checkpoint(client, run_id, folder, "others", ["challenger"])
    (found,) = client.search_model_versions("name = 'others'")
    assert found.description
    assert found.tags["segray.run"] == run_id  # of a run without a key
    client.delete_registered_model("others")


@pytest.mark.parametrize("lost", [".", "data/checkpoint/meta.json"])
def test_a_version_whose_files_were_deleted_says_so(store, lost, tmp_path):
    uri, client, _, folder, _ = store
    run_id = client.create_run("1").info.run_id
    version = register_checkpoint(client, run_id, folder, "streets", [])
    place = Path(client.get_run(run_id).info.artifact_uri) / "model" / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    try:
        with pytest.raises(
            RegistryError, match=f"/{version} cannot be loaded: .*{re.escape(Path(lost).name)}.*choose another version"
        ):
            download_checkpoint(f"models:/streets/{version}", uri, tmp_path)
    finally:
        client.delete_model_version("streets", version)


def test_a_store_that_is_away_is_asked_again_and_then_named():
    with pytest.raises(RegistryError, match=r"http://127.0.0.1:1 does not respond after 3 attempts .*; start MLflow"):
        connect_mlflow("http://127.0.0.1:1", "model models:/streets@champion", delays_s=(0, 0))


def test_a_store_that_comes_back_answers():
    away = [MlflowException("gone", error_code=TEMPORARILY_UNAVAILABLE), requests.ConnectionError("refused")]

    def ask():
        if away:
            raise away.pop()
        return "there"

    assert with_retries(ask, (0, 0)) == "there"


def test_a_store_that_says_no_is_not_asked_again():
    asked = []

    def ask():
        asked.append(1)
        raise MlflowException("no such thing", error_code=RESOURCE_DOES_NOT_EXIST)

    with pytest.raises(MlflowException, match="no such thing"):
        with_retries(ask, (0, 0))
    assert len(asked) == 1


def test_what_a_version_requires_is_all_that_its_loader_imports(store, tmp_path):
    uri, *_ = store
    place = Path(download_checkpoint("models:/streets/1", uri, tmp_path)).parents[1]
    lines = (place / "requirements.txt").read_text().split()
    required = {line.partition("==")[0].lower() for line in lines}
    assert all("==" in line for line in lines)
    code = (
        "import sys, importlib.metadata as known, mlflow.models\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        f"import {LOADER_MODULE}\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "found = known.packages_distributions()\n"
        "print(*{name.lower() for top in after - before for name in found.get(top, [])})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    imported = set(done.stdout.split()) - {"mlflow-skinny", "mlflow-tracing"}  # parts of mlflow
    assert {"torch", "safetensors"} <= imported <= required
    assert "ray" not in imported


@pytest.mark.slow
def test_mlflow_serves_a_version_and_answers_with_the_predictors_mask(store, tmp_path):
    uri, _, _, folder, _ = store
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["models", "serve", "-m", "models:/streets@challenger", "--env-manager", "local", "--port", port]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of uvicorn
    allowed = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PATH": path}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *map(str, words)],
            env=os.environ | allowed,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/ping", server, tmp_path / "log")
        image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        encoded = base64.b64encode(cv2.imencode(".png", image[..., ::-1])[1].tobytes()).decode()
        asked = {"dataframe_split": {"columns": ["image"], "data": [[encoded]]}}
        answer = requests.post(f"{address}/invocations", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        assert np.array_equal(decode_mask(base64.b64decode(row["mask"])), Predictor(folder)(image))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(address, server, log):
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        with suppress(requests.RequestException):
            if requests.get(address, timeout=1).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def test_mlflow_loads_a_version_without_pickles_and_gives_the_predictors_mask(store, monkeypatch):
    uri, _, _, folder, _ = store
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # set_tracking_uri would leave its mark on the tests after this
    loaded = mlflow.pyfunc.load_model("models:/streets@challenger")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    answer = loaded.predict(pd.DataFrame({"image": [encoded]}))
    assert np.array_equal(decode_mask(answer["mask"][0]), Predictor(folder)(image))
