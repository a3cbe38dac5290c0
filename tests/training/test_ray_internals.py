"""Private parts of Ray: which modules use them, and the error if a Ray release lacks one."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import ray
from ray.train.torch import TorchTrainer

from segray.cluster.ray_internals import KNOWN_RAY_VERSIONS
from segray.training import ray_internals, ray_trainer

LIBRARY = Path(ray_internals.__file__).parents[1]


def private_ray_imports(file):
    """Names of the private modules and functions of Ray that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if re.match(r"ray\..*(\._|^_)", name))


def test_one_module_of_training_and_tune_imports_private_parts():
    files = [file for package in ("training", "tune") for file in (LIBRARY / package).rglob("*.py")]
    assert len(files) > 40
    assert [file.name for file in files if list(private_ray_imports(file))] == ["ray_internals.py"]


@pytest.mark.parametrize("module", ["execution.failure_handling", "callbacks.datasets"])
def test_the_error_of_a_missing_module_names_the_supported_versions(monkeypatch, module):
    monkeypatch.setitem(sys.modules, f"ray.train.v2._internal.{module}", None)
    spec = importlib.util.spec_from_file_location("with_another_ray", ray_internals.__file__)
    with pytest.raises(ImportError, match=rf"Ray {ray.__version__} .*{module}.* Ray {KNOWN_RAY_VERSIONS}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_trainer_overrides_methods_that_ray_calls():
    """A renamed method of Ray would silently bring its own behaviour back."""
    private = [name for name in vars(ray_trainer.SegrayTrainer) if re.match(r"_[a-z]", name)]
    assert len(private) == 3
    for name in private:
        assert callable(getattr(TorchTrainer, name, None)), name
