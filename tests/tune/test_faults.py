"""Slow tests: sweeps that are killed, run out of memory, fail, copy checkpoints or have every variant."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from segray import config
from segray.core.errors import ResumeError, TrainingError
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training.fit import fit
from segray.tune.sweep import run_sweep
from segray.tune.trial import State

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def ignore(line):
    del line


def trial_folder(result, number):
    return Path(result.folder) / f"trial-{number:03d}"


def test_all_variants_run_as_trials(settings):
    sweep_config = settings(
        train__steps=2,
        tune__space={"model.variant": {"choice": ["b0", "b1", "b2", "b3", "b4", "b5"]}},
        tune__trials=6,
    )
    result = run_sweep(sweep_config, say=ignore)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 6
    parameters = [checkpoint.load_config(trial_folder(result, number)).model.variant for number in range(6)]
    assert parameters == ["b0", "b1", "b2", "b3", "b4", "b5"]


def test_training_with_the_best_settings_again_has_the_same_score(settings, tmp_path):
    sweep_config = settings(
        train__steps=8, train__workers=2, tune__scheduler="asha", tune__grace_steps=2, tune__reduction_factor=2
    )
    result = run_sweep(sweep_config, say=ignore)
    again = config.load([Path(result.config)], {"results": str(tmp_path / "again")})
    result_again = fit(again, say=ignore)
    assert result_again.scores.miou == result.best.best
    theirs = checkpoint.load_weights(Path(result_again.checkpoint))
    for name, value in checkpoint.load_weights(Path(result.checkpoint)).items():
        assert value.equal(theirs[name])


def test_runs_with_other_seeds_give_mean_and_deviation_and_are_registered(settings, mlflow_runs, tmp_path):
    result = run_sweep(settings(tune__seeds=2), say=ignore)
    assert len(set(result.seeds)) == 2
    assert result.mean == pytest.approx(sum(result.seeds) / 2)
    assert result.deviation == pytest.approx(abs(result.seeds[0] - result.seeds[1]) / math.sqrt(2))
    assert Path(result.checkpoint).parent.name == f"seed-{1 + result.seeds.index(max(result.seeds))}"
    _, runs = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert {"seed-1", "seed-2"} < set(runs)
    assert result.version == "1"


MEMORY_LIMITED_LOSS = """
import torch
from segray.training.losses.build import cross_entropy


def loss(outputs, batch, *, ignore_id, normaliser=None):
    if len(batch["mask"]) > {max_images}:
        torch.empty(2**48)  # no machine has this much memory
    return cross_entropy(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)
"""


@pytest.fixture
def memory_limited_loss(plugins, monkeypatch):
    """Function that writes a loss with memory for at most `max_images` images, and returns its name in settings."""
    monkeypatch.syspath_prepend(plugins)

    def write_loss(name, max_images):
        (plugins / f"{name}.py").write_text(MEMORY_LIMITED_LOSS.format(max_images=max_images))
        return [f"{name}:loss"]

    return write_loss


def test_out_of_memory_doubles_the_accumulation_steps_also_for_later_trials(settings, memory_limited_loss):
    sweep_config = settings(
        loss__terms=memory_limited_loss("loss_of_two_images", 2), train__steps=2, tune__max_concurrent=1
    )
    result = run_sweep(sweep_config, say=ignore)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 2
    assert [checkpoint.load_config(trial_folder(result, number)).train.accumulation_steps for number in (0, 1)] == [
        2,
        2,
    ]
    first, second = (
        [record["kind"] for record in Journal(trial_folder(result, number)).records()] for number in (0, 1)
    )
    assert first.count("resumed") == 1
    assert second.count("resumed") == 0


def test_when_all_trials_fail_the_reasons_are_grouped(settings, memory_limited_loss, mlflow_runs, tmp_path):
    sweep_config = settings(loss__terms=memory_limited_loss("loss_of_no_image", 0), train__batch=1, train__steps=2)
    with pytest.raises(TrainingError) as failed:
        run_sweep(sweep_config, say=ignore)
    lines = str(failed.value).splitlines()
    assert lines[0] == "all 2 trials failed:"
    assert lines[1].startswith("  2 x (trial 0, 1): a cpu worker does not have enough memory for 1 images of 32 px")
    parent, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FAILED"
    assert {run.info.status for run in trials.values()} == {"FAILED"}


def test_trials_fail_if_rows_cannot_be_read(settings, spoilt, mlflow_runs, tmp_path):
    with pytest.raises(TrainingError) as failed:
        run_sweep(settings(data__root=str(spoilt), data__bad_rows="fail", train__steps=40), say=ignore)
    lines = str(failed.value).splitlines()
    assert lines[0] == "all 2 trials failed:"
    assert lines[1].startswith("  2 x (trial 0, 1): ")
    assert "are not an image" in lines[1]
    parent, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert [run.info.status for run in (parent, *trials.values())] == ["FAILED"] * 3
    assert all(run.data.tags["segray.outcome"].startswith("failed: ") for run in trials.values())


def test_pbt_replaces_the_worst_trial_by_a_copy_of_the_best(settings, mlflow_runs, tmp_path):
    sweep_config = settings(
        train__steps=12,
        train__val_every=2,
        tune__space={"optim.lr": {"loguniform": [1e-12, 3e-3]}},
        tune__search="random",
        tune__scheduler="pbt",
        tune__perturbation_interval=4,
        tune__trials=3,
        tune__resample_prob=0.0,
        tune__quantile_fraction=0.4,
    )
    result = run_sweep(sweep_config, say=ignore)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 3
    rewound = {
        trial.number: [
            record for record in Journal(trial_folder(result, trial.number)).records() if record["kind"] == "rewound"
        ]
        for trial in result.trials
    }
    copies = [(number, record["donor"], record["step"]) for number, records in rewound.items() for record in records]
    assert copies
    number, donor, step = copies[0]
    assert donor != f"trial-{number:03d}"
    assert step % 2 == 0
    stored = checkpoint.load_config(trial_folder(result, number))
    assert stored.optim.lr == result.trials[number].values["optim.lr"]
    steps = [
        record["step"] for record in Journal(trial_folder(result, number)).records() if record["kind"] == "metrics"
    ]
    assert steps[-1] == 12
    _, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.status for run in trials.values()} == {"FINISHED"}


@pytest.fixture
def command(streets, tmp_path, empty_store, ray_cluster):
    """Function that starts a sweep of six trials with the command line, on the session's cluster."""
    shutil.copy(empty_store, tmp_path)
    file = tmp_path / "sweep.yaml"
    space = {"optim.lr": {"choice": [3e-3, 1e-3, 1e-12]}, "data.flip_prob": {"choice": [0.0, 0.5]}}
    settings = {
        "data": {"root": str(streets), "crop": 32},
        "optim": {"warmup_steps": 1},
        "train": {"steps": 8, "batch": 4, "workers": 1, "log_every": 1, "val_every": 2},
        "tune": {"space": space, "search": "grid", "trials": 6, "grace_steps": 2, "reduction_factor": 2},
    }
    file.write_text(yaml.safe_dump(settings))
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "pipelines/tune.py"), "--config", str(file), "--json", "result.json", *words],
            cwd=tmp_path,
            env=os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sweep_that_is_killed_at_random_moments_resumes(command, mlflow_runs, tmp_path, seed):
    rng, num_kills = random.Random(seed), 0
    process = command("--name", "six", "--tune.seed", str(seed))
    while num_kills < 3:
        time.sleep(rng.uniform(15, 60))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        num_kills += 1
        time.sleep(2)
        process = command("--name", "six", "--tune.seed", str(seed), "--resume", "auto")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert num_kills
    result = json.loads((tmp_path / "result.json").read_text())
    assert [trial["number"] for trial in result["trials"]] == list(range(6))
    parent, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FINISHED"
    assert sorted(trials) == [f"trial-{number:03d}" for number in range(6)]
    assert {run.info.status for run in trials.values()} <= {"FINISHED", "KILLED"}
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "stopped"}
    for trial in result["trials"]:
        run = tmp_path / "results/six" / f"trial-{trial['number']:03d}"
        steps = [record["step"] for record in Journal(run).records() if record["kind"] == "metrics"]
        assert steps == sorted(set(steps))  # each step once


def test_ctrl_c_stops_a_sweep_gracefully_and_it_resumes(command, mlflow_runs, tmp_path):
    process = command("--name", "six")
    journal = tmp_path / "results/six/trial-000/journal.jsonl"
    until = time.monotonic() + 120
    while not (journal.exists() and '"metrics"' in journal.read_text()):
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "interrupted: running trials save a checkpoint and stop." in output
    assert output.rstrip().endswith(f"sweep six was stopped; resume it with --resume {tmp_path}/results/six.")
    parent, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.status for run in (parent, *trials.values())} == {"KILLED"}
    output, _ = command("--name", "six", "--resume", "auto").communicate(timeout=400)
    parent, trials = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FINISHED", output
    assert len(trials) == 6


def test_a_budget_ends_a_sweep(settings):
    result = run_sweep(settings(tune__budget={"trials": 1}, tune__max_concurrent=1), say=ignore)
    assert result.ended == "tune.budget.trials, 1, is exhausted"
    assert [trial.state for trial in result.trials] == [State.FINISHED]
    again = run_sweep(settings(tune__budget={"trials": 2}, tune__max_concurrent=1), resume=result.folder, say=ignore)
    assert [trial.state for trial in again.trials] == [State.FINISHED] * 2
    assert again.ended in (None, "tune.budget.trials, 2, is exhausted")


def test_a_sweep_with_another_space_is_not_resumed(settings):
    result = run_sweep(
        settings(train__steps=2, tune__trials=1, tune__space={"optim.lr": {"choice": [1e-3]}}), say=ignore
    )
    other = settings(train__steps=2, tune__space={"optim.lr": {"choice": [1e-3, 1e-2]}})
    with pytest.raises(
        ResumeError, match=r"was started with other settings:\n  tune.space.optim.lr.choice: \[0.001\] -> "
    ):
        run_sweep(other, resume=result.folder, say=ignore)
    same = settings(train__steps=2, tune__trials=1, tune__space={"optim.lr": {"choice": [1e-3]}})
    with pytest.raises(ResumeError, match="sweep .* is finished"):
        run_sweep(same, resume=result.folder, say=ignore)
