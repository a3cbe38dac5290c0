"""A version is data: every changed, added or missing file is refused by name, and no code of a version runs."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from segray import Predictor
from segray.core.errors import RegistryError
from segray.serving.model_cache import ModelCache
from segray.tracking.integrity import package_digest, verify_package
from segray.tracking.registry import download_checkpoint, open_checkpoint, register_checkpoint

PACKAGE_FILES = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt")
CHECKPOINT_FILES = ("model.safetensors", "config.json", "classes.json", "meta.json")
TRAP = "from pathlib import Path\nPath({trace!r}).write_text('ran')\n\n\ndef _load_pyfunc(path):\n    return None\n"


@pytest.fixture(scope="module")
def registered(folder, empty_store, tmp_path_factory):
    """A registered version: the URI of its store, the folder of its files, and the id of its run."""
    place = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{shutil.copy(empty_store, place / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    run_id = client.create_run(client.create_experiment("tests", str(place / "artifacts"))).info.run_id
    register_checkpoint(client, run_id, folder, "streets", ["challenger", "champion"])
    return uri, Path(client.get_run(run_id).info.artifact_uri) / "model", run_id


@pytest.fixture
def version(registered, tmp_path):
    """The same version, whose files are restored after the test."""
    _, files, _ = registered
    shutil.copytree(files, tmp_path / "intact")
    yield registered
    shutil.rmtree(files)
    shutil.copytree(tmp_path / "intact", files)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Returns a module that leaves a file when it is imported, and checks at the end that it was not."""
    trace = tmp_path / "trace"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "segray_trap.py").write_text(TRAP.format(trace=str(trace)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield TRAP.format(trace=str(trace))
    assert not trace.exists(), "code of the version ran"
    assert "segray_trap" not in sys.modules


def _flip(file, _):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _load_module(file, _):
    content = yaml.safe_load(file.read_text())
    content["flavors"]["python_function"]["loader_module"] = "segray_trap"
    file.write_text(yaml.safe_dump(content))


def _write_code(file, trap):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(trap)


TAMPERINGS = {
    **{f"changed {name}": (name, _flip) for name in PACKAGE_FILES},
    **{f"changed {name}": (f"data/checkpoint/{name}", _flip) for name in CHECKPOINT_FILES},
    "loader module": ("MLmodel", _load_module),
    "added code": ("loader.py", _write_code),
    "added package": ("code/segray/__init__.py", _write_code),
    "added module beside the weights": ("data/checkpoint/hubconf.py", _write_code),
    "added pickle": ("python_model.pkl", _write_code),
    **{f"removed {name}": (name, lambda file, _: file.unlink()) for name in PACKAGE_FILES},
    **{f"removed {name}": (f"data/checkpoint/{name}", lambda file, _: file.unlink()) for name in CHECKPOINT_FILES},
}

READERS = {
    "download": lambda uri, _, target: download_checkpoint("models:/streets@champion", uri, target),
    "predict": lambda uri, *_: Predictor("models:/streets/1", "cpu", uri),
    "run": lambda uri, run_id, target: download_checkpoint(f"runs:/{run_id}/model", uri, target),
    "serve": lambda uri, _, target: ModelCache("streets", uri, target).get("1"),
}


CASES = [
    pytest.param(*TAMPERINGS[tampering], READERS[reader], id=f"{tampering}, {reader}")
    for tampering in TAMPERINGS
    for reader in READERS
    # All readers have one function in common; a few cases show that each of them calls it.
    if reader == "download" or tampering in ("changed model.safetensors", "loader module", "added code")
]


@pytest.mark.parametrize(("name", "tamper", "read"), CASES)
def test_a_version_with_a_changed_file_is_refused_by_name_and_none_of_its_code_runs(
    version, trap, tmp_path, name, tamper, read
):
    uri, files, run_id = version
    tamper(files / name, trap)
    (tmp_path / "target").mkdir()
    with pytest.raises(RegistryError) as refused:
        read(uri, run_id, tmp_path / "target")
    assert name in str(refused.value)
    assert "streets" in str(refused.value) or run_id in str(refused.value)


def test_a_second_model_of_a_run_leaves_the_files_of_the_first_alone(version, folder, tmp_path):
    uri, _, run_id = version
    client = MlflowClient(uri, uri)
    assert register_checkpoint(client, run_id, folder, "lanes", ["champion"]) == "1"
    for reference in ("models:/streets/1", "models:/lanes@champion", f"runs:/{run_id}/model"):
        with open_checkpoint(reference, uri) as checkpoint_dir:
            assert package_digest(checkpoint_dir) == package_digest(folder)
    client.delete_registered_model("lanes")


@pytest.mark.parametrize("source", ["runs:/{run}/model", "models:/streets/1"])
def test_a_version_created_with_mlflows_own_tools_is_verified(version, tmp_path, source):
    uri, files, run_id = version
    client = MlflowClient(uri, uri)
    client.create_registered_model("copies")
    if source.startswith("runs:/"):
        client.create_model_version("copies", source.format(run=run_id), run_id)
    else:
        client.copy_model_version(source, "copies")
    try:
        with open_checkpoint("models:/copies/1", uri) as checkpoint_dir:
            assert (checkpoint_dir / "meta.json").exists()
        _flip(files / "data" / "checkpoint" / "model.safetensors", None)
        with (
            pytest.raises(RegistryError, match=r"models:/copies/1 cannot be loaded: .*model\.safetensors"),
            open_checkpoint("models:/copies/1", uri),
        ):
            pytest.fail("loaded")
    finally:
        client.delete_registered_model("copies")


def test_a_link_to_a_file_outside_is_refused_and_does_not_reveal_it(version, tmp_path):
    uri, files, _ = version
    (tmp_path / "secret").write_text("{}")
    (files / "data" / "checkpoint" / "classes.json").unlink()
    (files / "data" / "checkpoint" / "classes.json").symlink_to(tmp_path / "secret")
    (tmp_path / "target").mkdir()
    with pytest.raises(RegistryError, match="models:/streets/1 cannot be loaded: "):  # by MLflow itself
        download_checkpoint("models:/streets/1", uri, tmp_path / "target")
    with pytest.raises(RegistryError, match=r"classes\.json is a link"):
        verify_package(files, {}, "the version")


LEGACY_CODE = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

set_model(Model())
"""


@pytest.fixture
def legacy(folder, empty_store, tmp_path):
    """A version of an earlier release: with a loader file, and with one digest of the checkpoint."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'legacy.db')}"
    client = MlflowClient(uri, uri)
    run_id = client.create_run(client.create_experiment("tests", str(tmp_path / "artifacts"))).info.run_id
    (tmp_path / "checkpoint").mkdir()
    for name in CHECKPOINT_FILES:
        shutil.copy(folder / name, tmp_path / "checkpoint")
    code = tmp_path / "loader.py"
    code.write_text(LEGACY_CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            tmp_path / "model",
            python_model=str(code),
            artifacts={"checkpoint": str(tmp_path / "checkpoint")},
            pip_requirements=[],
        )
    client.log_artifacts(run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("streets")
    digest = {"segray.checkpoint": package_digest(folder)}
    client.create_model_version("streets", f"runs:/{run_id}/model", run_id, digest)
    client.set_registered_model_alias("streets", "champion", "1")
    return uri, Path(client.get_run(run_id).info.artifact_uri) / "model", run_id


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_version_of_an_earlier_release_loads_and_its_code_does_not_run(legacy, trap, tmp_path, read):
    uri, files, run_id = legacy
    (files / "loader.py").write_text(trap)
    (tmp_path / "target").mkdir()
    assert read(uri, run_id, tmp_path / "target") is not None
    assert not (tmp_path / "trace").exists(), "code of the version ran"
    assert "segray_trap" not in sys.modules


@pytest.mark.parametrize("reader", ["download", "run"])
def test_the_checkpoint_of_an_earlier_release_is_read_byte_for_byte(legacy, tmp_path, reader):
    uri, files, run_id = legacy
    (tmp_path / "target").mkdir()
    result = READERS[reader](uri, run_id, tmp_path / "target")
    for name in CHECKPOINT_FILES:
        assert (result / name).read_bytes() == (files / "artifacts/checkpoint" / name).read_bytes()


LEGACY_TAMPERINGS = {
    **{f"changed {name}": (f"artifacts/checkpoint/{name}", _flip) for name in CHECKPOINT_FILES},
    "loader module": ("MLmodel", _load_module),
    "added code": ("code/segray/__init__.py", _write_code),
    "added pickle": ("python_model.pkl", _write_code),
    "added module beside the weights": ("artifacts/checkpoint/hubconf.py", _write_code),
    "removed weights": ("artifacts/checkpoint/model.safetensors", lambda file, _: file.unlink()),
}


@pytest.mark.parametrize(("name", "tamper"), LEGACY_TAMPERINGS.values(), ids=LEGACY_TAMPERINGS)
def test_a_changed_version_of_an_earlier_release_is_refused(legacy, trap, tmp_path, name, tamper):
    uri, files, run_id = legacy
    tamper(files / name, trap)
    (tmp_path / "target").mkdir()
    for read in (READERS["download"], READERS["run"]):
        with pytest.raises(RegistryError) as refused:
            read(uri, run_id, tmp_path / "target")
        assert Path(name).name in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("tampering", ["changed model.safetensors", "loader module", "added code"])
def test_every_command_refuses_a_changed_version(version, trap, tmp_path, tampering):
    uri, files, _ = version
    name, tamper = TAMPERINGS[tampering]
    tamper(files / name, trap)
    data = str(tmp_path / "data")  # does not exist, because the model is refused first
    store, model = ["--tracking.uri", uri, "--results", str(tmp_path / "results")], "models:/streets@champion"
    commands = {
        "evaluate": ["--model", model, "--data", data, *store],
        "predict": ["--model", model, "--source", data, "--out", str(tmp_path / "masks"), *store],
        "promote": ["--name", "streets", "--version", "1", "--data", data, *store],
        "serve": ["--name", "streets", *store],
    }
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "modules")}
    for command, flags in commands.items():
        if command == "promote":  # the champion itself cannot be promoted
            MlflowClient(uri, uri).delete_registered_model_alias("streets", "champion")
        elif command == "serve":
            MlflowClient(uri, uri).set_registered_model_alias("streets", "champion", "1")
        done = subprocess.run(
            [sys.executable, "-m", "segray", command, *flags],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 2, (command, done.stderr)
        assert name in done.stderr, (command, done.stderr)
        assert "Traceback" not in done.stderr
