"""Sweeps that are killed, run out of memory, fail, copy each other, or have every variant: the long proofs."""

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


def quiet(line):
    del line


def run_of(result, number):
    return Path(result.folder) / f"trial-{number:03d}"


def test_all_variants_run_as_trials(settings):
    made = settings(
        train__steps=2,
        tune__space={"model.variant": {"choice": ["b0", "b1", "b2", "b3", "b4", "b5"]}},
        tune__trials=6,
    )
    result = run_sweep(made, say=quiet)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 6
    parameters = [checkpoint.load_config(run_of(result, number)).model.variant for number in range(6)]
    assert parameters == ["b0", "b1", "b2", "b3", "b4", "b5"]


def test_the_winner_trained_again_by_its_file_has_its_score(settings, tmp_path):
    made = settings(
        train__steps=8, train__workers=2, tune__scheduler="asha", tune__grace_steps=2, tune__reduction_factor=2
    )
    result = run_sweep(made, say=quiet)
    again = config.load([Path(result.config)], {"results": str(tmp_path / "again")})
    found = fit(again, say=quiet)
    assert found.scores.miou == result.best.best
    theirs = checkpoint.load_weights(Path(found.checkpoint))
    for name, value in checkpoint.load_weights(Path(result.checkpoint)).items():
        assert value.equal(theirs[name])


def test_runs_with_other_seeds_tell_mean_and_deviation_and_are_registered(settings, runs_of, tmp_path):
    result = run_sweep(settings(tune__seeds=2), say=quiet)
    assert len(set(result.seeds)) == 2
    assert result.mean == pytest.approx(sum(result.seeds) / 2)
    assert result.deviation == pytest.approx(abs(result.seeds[0] - result.seeds[1]) / math.sqrt(2))
    assert Path(result.checkpoint).parent.name == f"seed-{1 + result.seeds.index(max(result.seeds))}"
    _, runs = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert {"seed-1", "seed-2"} < set(runs)
    assert result.version == "1"


HUNGRY = """
import torch
from segray.training.losses.build import cross_entropy


def loss(outputs, batch, *, ignore_id, normaliser=None):
    if len(batch["mask"]) > {most}:
        torch.empty(2**48)  # what no machine has
    return cross_entropy(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)
"""


@pytest.fixture
def hungry(plugins, monkeypatch):
    """Writes a loss that has memory for so many images at once, and returns how a setting names it."""
    monkeypatch.syspath_prepend(plugins)

    def written(name, most):
        (plugins / f"{name}.py").write_text(HUNGRY.format(most=most))
        return [f"{name}:loss"]

    return written


def test_out_of_memory_halves_the_images_at_once_and_later_trials_know(settings, hungry):
    made = settings(loss__terms=hungry("hungry_two", 2), train__steps=2, tune__max_concurrent=1)
    result = run_sweep(made, say=quiet)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 2
    assert [checkpoint.load_config(run_of(result, number)).train.accumulation_steps for number in (0, 1)] == [2, 2]
    first, second = ([one["kind"] for one in Journal(run_of(result, number)).records()] for number in (0, 1))
    assert first.count("resumed") == 1
    assert second.count("resumed") == 0


def test_when_all_trials_fail_the_reasons_are_grouped(settings, hungry, runs_of, tmp_path):
    made = settings(loss__terms=hungry("hungry_none", 0), train__batch=1, train__steps=2)
    with pytest.raises(TrainingError) as failed:
        run_sweep(made, say=quiet)
    told = str(failed.value).splitlines()
    assert told[0] == "all 2 trials failed:"
    assert told[1].startswith("  2 x (trial 0, 1): a cpu worker has no memory for 1 images of 32 px at once")
    parent, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FAILED"
    assert {run.info.status for run in trials.values()} == {"FAILED"}


def test_rows_that_cannot_be_read_are_why_trials_fail(settings, spoilt, runs_of, tmp_path):
    with pytest.raises(TrainingError) as failed:
        run_sweep(settings(data__root=str(spoilt), data__bad_rows="fail", train__steps=40), say=quiet)
    told = str(failed.value).splitlines()
    assert told[0] == "all 2 trials failed:"
    assert told[1].startswith("  2 x (trial 0, 1): ")
    assert "are not an image" in told[1]
    parent, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert [run.info.status for run in (parent, *trials.values())] == ["FAILED"] * 3
    assert all(run.data.tags["segray.outcome"].startswith("failed: ") for run in trials.values())


def test_the_worst_of_a_population_goes_on_from_the_best(settings, runs_of, tmp_path):
    made = settings(
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
    result = run_sweep(made, say=quiet)
    assert [trial.state for trial in result.trials] == [State.FINISHED] * 3
    rewound = {
        trial.number: [one for one in Journal(run_of(result, trial.number)).records() if one["kind"] == "rewound"]
        for trial in result.trials
    }
    copies = [(number, one["donor"], one["step"]) for number, found in rewound.items() for one in found]
    assert copies
    number, donor, step = copies[0]
    assert donor != f"trial-{number:03d}"
    assert step % 2 == 0
    stored = checkpoint.load_config(run_of(result, number))
    assert stored.optim.lr == result.trials[number].values["optim.lr"]
    steps = [one["step"] for one in Journal(run_of(result, number)).records() if one["kind"] == "metrics"]
    assert steps[-1] == 12
    _, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.status for run in trials.values()} == {"FINISHED"}


@pytest.fixture
def command(streets, tmp_path, empty_store, ray_cluster):
    """Starts the command of a sweep of six trials, on the session's cluster."""
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
def test_a_sweep_that_is_killed_at_a_random_moment_goes_on(command, runs_of, tmp_path, seed):
    chance, kills = random.Random(seed), 0
    process = command("--name", "six", "--tune.seed", str(seed))
    while kills < 3:
        time.sleep(chance.uniform(15, 60))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        time.sleep(2)
        process = command("--name", "six", "--tune.seed", str(seed), "--resume", "auto")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert kills
    result = json.loads((tmp_path / "result.json").read_text())
    assert [trial["number"] for trial in result["trials"]] == list(range(6))
    parent, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FINISHED"
    assert sorted(trials) == [f"trial-{number:03d}" for number in range(6)]
    assert {run.info.status for run in trials.values()} <= {"FINISHED", "KILLED"}
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "stopped"}
    for trial in result["trials"]:
        run = tmp_path / "results/six" / f"trial-{trial['number']:03d}"
        steps = [one["step"] for one in Journal(run).records() if one["kind"] == "metrics"]
        assert steps == sorted(set(steps))  # each once


def test_ctrl_c_ends_a_sweep_in_order_and_it_goes_on(command, runs_of, tmp_path):
    process = command("--name", "six")
    journal = tmp_path / "results/six/trial-000/journal.jsonl"
    until = time.monotonic() + 120
    while not (journal.exists() and '"metrics"' in journal.read_text()):
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "interrupted: running trials save a checkpoint and stop." in said
    assert said.rstrip().endswith(f"sweep six was stopped; resume it with --resume {tmp_path}/results/six.")
    parent, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.status for run in (parent, *trials.values())} == {"KILLED"}
    said, _ = command("--name", "six", "--resume", "auto").communicate(timeout=400)
    parent, trials = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert parent.info.status == "FINISHED", said
    assert len(trials) == 6


def test_a_budget_ends_a_sweep(settings):
    result = run_sweep(settings(tune__budget={"trials": 1}, tune__max_concurrent=1), say=quiet)
    assert result.ended == "tune.budget.trials, 1, is exhausted"
    assert [trial.state for trial in result.trials] == [State.FINISHED]
    again = run_sweep(settings(tune__budget={"trials": 2}, tune__max_concurrent=1), resume=result.folder, say=quiet)
    assert [trial.state for trial in again.trials] == [State.FINISHED] * 2
    assert again.ended in (None, "tune.budget.trials, 2, is exhausted")


def test_a_sweep_of_another_space_is_not_gone_on_with(settings):
    result = run_sweep(
        settings(train__steps=2, tune__trials=1, tune__space={"optim.lr": {"choice": [1e-3]}}), say=quiet
    )
    other = settings(train__steps=2, tune__space={"optim.lr": {"choice": [1e-3, 1e-2]}})
    with pytest.raises(
        ResumeError, match=r"was started with other settings:\n  tune.space.optim.lr.choice: \[0.001\] -> "
    ):
        run_sweep(other, resume=result.folder, say=quiet)
    same = settings(train__steps=2, tune__trials=1, tune__space={"optim.lr": {"choice": [1e-3]}})
    with pytest.raises(ResumeError, match="sweep .* is finished"):
        run_sweep(same, resume=result.folder, say=quiet)
