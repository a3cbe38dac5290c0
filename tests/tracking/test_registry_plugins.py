"""A registered version names modules; only those that the user allows are imported."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from segray import Predictor
from segray.config import ServeConfig, build
from segray.core.classes import Classes
from segray.core.errors import RegistryError
from segray.models import checkpoint
from segray.models.build import build_model
from segray.serving.deployments import build_application
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import LoadedModel, ModelFiles
from segray.tracking.registry import register_checkpoint

MODULE = """
from segray.models.segformer.heads import SegFormerHead

def head(dims, strides, num_classes, dropout):
    return SegFormerHead(dims, width=8, num_classes=num_classes, dropout=dropout)
"""
REFUSAL = r"model.head is 'street_parts:head'.* set SEGRAY_PLUGINS=street_parts"


@pytest.fixture
def version(empty_store, tmp_path, monkeypatch):
    """A registered version whose head is a plug-in that is not imported yet: the URI of its store, and its run."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "street_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delenv("SEGRAY_PLUGINS", raising=False)
    config, classes = build({"model.head": "street_parts:head", "data.crop": 64}), Classes.from_names(["road", "sky"])
    run = tmp_path / "run" / "step-000001"
    run.mkdir(parents=True)
    torch.manual_seed(0)
    meta = checkpoint.Meta(step=1, dataset_digest="", versions={})
    checkpoint.snapshot(build_model(config, classes), {}, config, classes, meta).write(run)
    del sys.modules["street_parts"]
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    run_id = client.create_run(client.create_experiment("tests", str(tmp_path / "artifacts"))).info.run_id
    register_checkpoint(client, run_id, run, "streets", ["champion"])
    yield uri, run
    sys.modules.pop("street_parts", None)


@pytest.mark.parametrize("allowed", ["", "other", "street", "street_parts.head", "other,streets_parts"])
def test_a_version_that_names_another_module_is_refused_before_the_import(version, tmp_path, monkeypatch, allowed):
    uri, run = version
    monkeypatch.setenv("SEGRAY_PLUGINS", allowed)
    with pytest.raises(RegistryError, match=f"models:/streets@champion.* {REFUSAL}"):
        Predictor("models:/streets@champion", "cpu", uri)
    with pytest.raises(RegistryError, match=REFUSAL):
        ModelCache("streets", uri, tmp_path / "cache").get("1")
    with pytest.raises(RegistryError, match=f"version 1 of streets .*{REFUSAL}"):
        LoadedModel(ModelFiles.from_dir("streets", "1", run, {}), ServeConfig(), "cpu")
    assert "street_parts" not in sys.modules


@pytest.mark.parametrize("allowed", ["street_parts", "other, street_parts"])
def test_an_allowed_module_is_imported(version, tmp_path, monkeypatch, allowed):
    uri, _ = version
    monkeypatch.setenv("SEGRAY_PLUGINS", allowed)
    assert Predictor("models:/streets@champion", "cpu", uri).classes.names == ("road", "sky")
    loaded = LoadedModel(ModelCache("streets", uri, tmp_path / "cache").get("1"), ServeConfig(), "cpu")
    assert loaded.classes.names == ("road", "sky")


def test_own_checkpoint_folders_need_no_permission(version):
    _, run = version
    assert Predictor(Path(run), "cpu").classes.names == ("road", "sky")


@pytest.mark.parametrize("allowed", [None, "street_parts"])
def test_replicas_and_the_controller_have_the_variable_of_the_server(monkeypatch, allowed):
    monkeypatch.delenv("SEGRAY_PLUGINS", raising=False)
    if allowed:
        monkeypatch.setenv("SEGRAY_PLUGINS", allowed)
    application = build_application(ServeConfig(), "streets", "sqlite:///none.db", "cache", "cpu", 1, None)
    gateway = application._bound_deployment
    bound = [argument._bound_deployment for argument in gateway.init_args if hasattr(argument, "_bound_deployment")]
    assert len(bound) == 2
    for deployment in bound:
        environment = deployment.ray_actor_options.get("runtime_env", {}).get("env_vars", {})
        assert environment.get("SEGRAY_PLUGINS") == allowed
