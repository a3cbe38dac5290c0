"""Fixtures of the tests of sweeps: settings of a small sweep, a real sweep, and the runs of a sweep in MLflow."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from segray import config
from segray.tune.sweep import run_sweep


@pytest.fixture(scope="session")
def mlflow_runs():
    """Function that returns the run of the only sweep in an MLflow store, and the runs of its trials by name."""

    def find_runs(uri):
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name("segray").experiment_id
        runs = client.search_runs([experiment], max_results=100)
        (parent,) = [run for run in runs if run.data.tags.get("segray.kind") == "sweep"]
        trial_runs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len({run.info.run_name for run in trial_runs}) == len(trial_runs)  # none twice
        return parent, {run.info.run_name: run for run in trial_runs}

    return find_runs


@pytest.fixture
def settings(streets, tmp_path, empty_store):
    """Function that returns the settings of a small sweep, whose files are in the test's folder."""
    shutil.copy(empty_store, tmp_path)

    def build(**changes):
        base: dict[str, Any] = {
            "results": str(tmp_path / "results"),
            "data": {"root": str(streets), "crop": 32},
            "optim": {"lr": 1e-3, "warmup_steps": 1},
            "train": {"steps": 4, "batch": 4, "workers": 1, "log_every": 1, "val_every": 2},
            "tune": {"space": {"optim.lr": {"choice": [1e-3, 1e-5]}}, "search": "grid", "scheduler": "none"},
        }
        base["tune"]["space"] = changes.pop("tune__space", base["tune"]["space"])
        return config.build(config.merge(base, {key.replace("__", "."): value for key, value in changes.items()}))

    return build


@pytest.fixture(scope="session")
def sweep_run(ray_cluster, streets, tmp_path_factory, empty_store):
    """A real sweep of three trials, of which asha lets one finish: its result, its folder and its view."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copy(empty_store, folder)
    messages, views = [], []
    sweep_config = config.build(
        {
            "name": "three",
            "results": str(folder / "results"),
            "data": {"root": str(streets), "crop": 32},
            "optim": {"warmup_steps": 1},
            "train": {"steps": 24, "batch": 4, "workers": 1, "log_every": 6, "val_every": 12},
            "tune": {
                "space": {"optim.lr": {"choice": [3e-4, 1e-12, 1e-11]}, "data.flip_prob": {"choice": [0.5]}},
                "search": "grid",
                "trials": 3,
                "grace_steps": 12,
                "reduction_factor": 2,
                "metrics": ["train/loss", "cost/parameters"],
            },
        }
    )
    return run_sweep(sweep_config, say=messages.append, watch=views.append), Path(folder), views[0]
