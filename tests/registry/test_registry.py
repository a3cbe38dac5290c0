"""Versions: registered once a run, fetched by every kind of reference, loaded without a pickle."""

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from segray import checkpoint, config, registry
from segray.classes import Classes
from segray.data.images import decode_mask
from segray.errors import RegistryError
from segray.predict import Predictor

CLASSES = Classes.named(["road", "car", "sky"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one run and one version, the run's id and its checkpoint."""
    place = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{place}/mlflow.db"
    client = MlflowClient(uri, uri)
    run_id = client.create_run(client.create_experiment("tests", str(place / "artifacts"))).info.run_id
    folder = place / "checkpoint"
    folder.mkdir()
    torch.manual_seed(0)
    settings = config.build({})
    model = checkpoint.build_model(settings, CLASSES)
    meta = checkpoint.Meta(step=1, metrics={}, confusion=[], dataset_digest="", versions={})
    checkpoint.contents(model, {}, settings, CLASSES, meta).write(folder)
    version = registry.register(client, run_id, folder, "streets", ["challenger"])
    return uri, client, run_id, folder, version


def test_a_run_registers_one_version_however_often_it_is_asked(store):
    _, client, run_id, folder, version = store
    assert registry.register(client, run_id, folder, "streets", ["challenger"]) == version == "1"
    assert len(client.search_model_versions("name = 'streets'")) == 1


@pytest.mark.parametrize("reference", ["models:/streets@challenger", "models:/streets/1", "runs:/{run}/model"])
def test_every_kind_of_reference_finds_the_checkpoint(store, reference):
    uri, _, run_id, folder, _ = store
    found = registry.fetch(reference.format(run=run_id), uri)
    assert (found / checkpoint.WEIGHTS).read_bytes() == (folder / checkpoint.WEIGHTS).read_bytes()
    assert not (found / checkpoint.STATE).exists()
    assert not list(found.parents[1].rglob("*.pkl"))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("models:/nothing@challenger", "registered there: streets"),
        ("models:/streets@champion", "champion"),
        ("models:/streets/9", "9"),
        ("models:/streets", "names no version"),
        ("runs:/0123456789abcdef/model", "cannot be fetched"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(store, reference, said):
    with pytest.raises(RegistryError, match=said):
        registry.fetch(reference, store[0])


def test_mlflow_loads_a_version_without_pickles_and_gives_the_predictors_mask(store, monkeypatch):
    uri, _, _, folder, _ = store
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # set_tracking_uri would leave its mark on the tests after this
    loaded = mlflow.pyfunc.load_model("models:/streets@challenger")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    answer = loaded.predict(pd.DataFrame({"image": [encoded]}))
    assert np.array_equal(decode_mask(answer["mask"][0]), Predictor(folder)(image))
