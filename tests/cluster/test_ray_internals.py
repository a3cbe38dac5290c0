"""Ray's private API: what this release lacks is named, with the releases that have it."""

import sys
from pathlib import Path

import pytest
import ray

from segray.cluster import ray_internals
from segray.cluster.ray_internals import KNOWN_RAY_VERSIONS, explain_ray_errors

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MESSAGE = rf"Ray 9\.0\.0 lacks a private module or function .*; segray works with Ray {KNOWN_RAY_VERSIONS}; install"


def test_the_pinned_release_is_a_known_one():
    (pin,) = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("ray==")]
    assert ".".join(pin.removeprefix("ray==").split(".")[:2]) in KNOWN_RAY_VERSIONS.split(", ")


def test_a_module_that_is_missing_is_an_error_with_the_known_releases(monkeypatch):
    monkeypatch.setattr(ray, "__version__", "9.0.0")
    monkeypatch.setitem(sys.modules, "ray.serve._private.constants", None)
    with pytest.raises(ImportError, match=MESSAGE) as raised:
        ray_internals.serve_controller_name()
    assert "ray.serve._private.constants" in str(raised.value)


def test_a_name_that_is_missing_is_an_error_with_the_known_releases(monkeypatch):
    monkeypatch.setattr(ray, "__version__", "9.0.0")
    with pytest.raises(ImportError, match=MESSAGE), explain_ray_errors():
        from ray.exceptions import NoSuchName  # noqa: F401
    monkeypatch.setattr(ray_internals, "_state", object())
    with pytest.raises(ImportError, match="get_cluster_config"):
        ray_internals.read_cluster_config()


def test_other_errors_pass_unchanged():
    with pytest.raises(ValueError, match="no import"), explain_ray_errors():
        raise ValueError("no import")
