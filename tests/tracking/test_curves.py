"""Curves are what MLflow holds, run by run."""

import shutil

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from segray.core.errors import DataError, RegistryError
from segray.tracking.curves import METRICS, load_curves, plot_training_curves, running_mean


@pytest.fixture
def uri(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("streets", (tmp_path / "artifacts").as_uri())
    for number, name in enumerate(("first", "second", "empty")):
        run = client.create_run(experiment, start_time=1 + number, run_name=name)
        for step in (20, 10) if name != "empty" else ():
            client.log_metric(run.info.run_id, "train/loss", number + 1 / step, step=step)
            client.log_metric(run.info.run_id, "val/miou", number + step / 100, step=step)
    return uri


def test_all_runs_with_values_in_order_of_their_start_and_steps(uri, tmp_path):
    found = load_curves(uri, "streets", [])
    assert [curve.name for curve in found] == ["first", "second"]
    assert found[1].points == {"train/loss": ([10, 20], [1.1, 1.05]), "val/miou": ([10, 20], [1.1, 1.2])}
    assert set(METRICS) == set(found[0].points)
    plot_training_curves(found, tmp_path / "curves.png")
    assert len(Image.open(tmp_path / "curves.png").convert("RGB").getcolors(1 << 24)) > 50


def test_runs_that_are_named(uri):
    assert [curve.name for curve in load_curves(uri, "streets", ["second"])] == ["second"]


def test_what_is_not_there_is_told(uri, tmp_path):
    with pytest.raises(DataError, match="has no run secnd; did you mean 'second'"):
        load_curves(uri, "streets", ["secnd"])
    with pytest.raises(DataError, match="experiment roads does not exist; expected one of .*streets"):
        load_curves(uri, "roads", [])
    with pytest.raises(DataError, match="no run of experiment streets has train/loss or val/miou"):
        load_curves(uri, "streets", ["empty"])
    with pytest.raises(RegistryError, match="cannot be read"):
        load_curves("http://127.0.0.1:9", "streets", [])


def test_a_running_mean_starts_at_the_first_value_and_forgets_it():
    assert running_mean([4.0])[0] == pytest.approx(4)
    assert running_mean([4.0, 4.0, 4.0]) == pytest.approx([4, 4, 4])
    assert running_mean([4.0] + [1.0] * 200)[-1] == pytest.approx(1)
