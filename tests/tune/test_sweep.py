"""A real sweep: bad trials are stopped, MLflow has all runs, and the best settings can be trained again."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from segray import config
from segray.models import checkpoint
from segray.tracking.registry import MlflowClient, download_checkpoint
from segray.tune.trial import State


def test_bad_trials_are_stopped_and_the_best_finishes(sweep_run):
    result, _, view = sweep_run
    assert view.estimate.num_concurrent == 2
    assert [trial.values["optim.lr"] for trial in result.trials] == [3e-4, 1e-12, 1e-11]
    finished = [trial for trial in result.trials if trial.state is State.FINISHED]
    assert result.best in finished
    assert result.best.values["optim.lr"] == 3e-4
    stopped = [trial for trial in result.trials if trial.state is State.STOPPED]
    assert {trial.number for trial in stopped} == {1, 2}
    assert all(trial.step < 24 for trial in stopped)
    assert result.cost.steps == sum(trial.step for trial in result.trials) < result.cost.whole == 72
    assert result.ended is None


def test_the_estimate_is_close_to_the_cost(sweep_run):
    _, _, view = sweep_run
    assert view.estimate.steps == 72
    assert view.estimate.expected == 48  # three to step 12, one of them to 24
    assert 0 < view.estimate.hours < 0.2


def test_mlflow_has_the_sweep_and_its_trials_and_no_run_is_running(sweep_run, mlflow_runs):
    result, folder, _ = sweep_run
    parent, trials = mlflow_runs(f"sqlite:///{folder}/mlflow.db")
    assert parent.info.run_id == result.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.params["tune.trials"] == "3"
    assert parent.data.params["tune.space.optim.lr.choice"] == "[0.0003, 1e-12, 1e-11]"
    assert parent.data.metrics["sweep/best"] == pytest.approx(-result.best.best)
    assert sorted(trials) == ["trial-000", "trial-001", "trial-002"]
    for trial in result.trials:
        run = trials[f"trial-{trial.number:03d}"]
        assert run.info.status == ("FINISHED" if trial.state is State.FINISHED else "KILLED")
        assert run.data.tags["segray.outcome"].startswith(str(trial.state))
        assert run.data.params["optim.lr"] == str(trial.values["optim.lr"])
        assert not [name for name in run.data.params if name.startswith("tune.")]
        assert run.data.metrics["train/loss"] == pytest.approx(-trial.value)
        assert run.data.metrics["cost/parameters"] == trial.other_metrics["cost/parameters"] > 1e6


def test_mlflow_has_every_validation_once(sweep_run, mlflow_runs):
    result, folder, _ = sweep_run
    _, trials = mlflow_runs(f"sqlite:///{folder}/mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for trial in result.trials:
        history = client.get_metric_history(trials[f"trial-{trial.number:03d}"].info.run_id, "val/miou")
        assert sorted(metric.step for metric in history) == sorted(trial.curve)


def test_train_accepts_the_file_with_the_best_settings(sweep_run, tmp_path):
    result, _, _ = sweep_run
    best_config = config.load([Path(result.config)])
    stored = checkpoint.load_config(Path(result.checkpoint))
    assert best_config.digest == stored.digest
    assert best_config.tune == config.TuneConfig()
    assert "tune" not in yaml.safe_load(Path(result.config).read_text())
    other_file = tmp_path / "places.yaml"  # such as SEGRAY_CONFIG names
    other_file.write_text("{model: {variant: b3}, data: {flip: 0.0}, optim: {weight_decay: 0.5}}")
    assert config.load([other_file, Path(result.config)]).digest == stored.digest


def test_the_best_checkpoint_is_the_challenger(sweep_run, tmp_path):
    result, folder, _ = sweep_run
    fetched = download_checkpoint("models:/segray@challenger", f"sqlite:///{folder}/mlflow.db", tmp_path)
    assert result.version == "1"
    assert checkpoint.load_weights(fetched).keys() == checkpoint.load_weights(Path(result.checkpoint)).keys()
    assert checkpoint.load_meta(fetched) == checkpoint.load_meta(Path(result.checkpoint))
    assert Path(result.checkpoint).parent.name == f"trial-{result.best.number:03d}"


def test_the_report_shows_every_trial(sweep_run):
    result, folder, _ = sweep_run
    page = Path(result.report).read_text()
    assert [f'data-trial="{number}"' in page for number in range(3)] == [True] * 3
    assert f'id="best">{-result.best.best:.4f}<' in page
    for name in ("curves", "parallel", "front"):
        with Image.open(Path(result.report).parent / f"{name}.png") as picture:
            assert picture.width > 600
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    artifacts = {file.path for file in client.list_artifacts(result.run_id, "report")}
    assert {"report/index.html", "report/curves.png", "report/parallel.png"} <= artifacts
