"""A version is data: every changed, added or missing file is refused by name, and no code of a version runs."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from segray import Predictor
from segray.core.errors import RegistryError
from segray.serving.model_cache import ModelCache
from segray.tracking.registry import download_checkpoint, register_checkpoint

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
