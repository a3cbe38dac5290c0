"""The registered weights that trials start from are downloaded once, and nothing of them remains."""

import shutil
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from segray.config import build
from segray.core.classes import Classes
from segray.core.errors import RegistryError
from segray.models import checkpoint
from segray.models.build import build_model
from segray.tracking import registry
from segray.tracking.registry import register_checkpoint
from segray.training.setup import _load_weights
from segray.tune.initial_weights import download_initial_weights

CLASSES = Classes.from_names(["road", "car", "sky"])


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store):
    """The URI of a store with one version of the models start-b0 and start-b1."""
    place = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{shutil.copy(empty_store, place / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("tests", str(place / "artifacts"))
    for variant in ("b0", "b1"):
        config = build({"model.variant": variant})
        folder = place / variant
        folder.mkdir()
        meta = checkpoint.Meta(step=1, dataset_digest="", versions={})
        checkpoint.snapshot(build_model(config, CLASSES), {}, config, CLASSES, meta).write(folder)
        run_id = client.create_run(experiment).info.run_id
        register_checkpoint(client, run_id, folder, f"start-{variant}", ["champion"])
    return uri


def sweep_config(init, **space):
    return build({"model": {"init": init}, "tune": {"space": {"optim.lr": {"uniform": [0.001, 0.01]}} | space}})


def test_each_version_is_downloaded_once_and_the_trials_read_it_without_the_registry(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "sweep").mkdir()
    config = sweep_config("models:/start-{variant}@champion", **{"model.variant": {"choice": ["b0", "b1"]}})
    with download_initial_weights(config, tmp_path / "sweep", store) as downloads:
        assert sorted(downloads) == ["models:/start-b0@champion", "models:/start-b1@champion"]
        assert all(folder.is_relative_to(tmp_path / "sweep") for folder in downloads.values())
        monkeypatch.setattr(registry, "download_checkpoint", lambda *_: pytest.fail("downloaded again"))
        for variant in ("b0", "b1"):
            trial = build({"model": {"init": config.model.init, "variant": variant}})
            manifest = SimpleNamespace(classes=CLASSES)
            target = SimpleNamespace(config=trial, manifest=manifest, run=None, tracking_uri="http://127.0.0.1:1")
            weights = _load_weights(target, lambda _: None, downloads)
            stored = checkpoint.load_weights(downloads[f"models:/start-{variant}@champion"])
            assert all((weights[name] == stored[name]).all() for name in stored)
    assert list((tmp_path / "sweep").iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("init", [None, "nvidia/mit-b0", "/weights/{variant}"])
def test_other_weights_are_not_downloaded(tmp_path, init):
    with download_initial_weights(sweep_config(init), tmp_path, "sqlite:///nowhere.db") as downloads:
        assert downloads == {}
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_does_not_exist_ends_the_sweep_before_its_first_trial(store, tmp_path):
    with (
        pytest.raises(RegistryError, match="models:/start-b0@none cannot be loaded"),
        download_initial_weights(sweep_config("models:/start-{variant}@none"), tmp_path, store),
    ):
        pytest.fail("started")
    assert list(tmp_path.iterdir()) == []
