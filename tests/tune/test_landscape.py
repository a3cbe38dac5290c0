"""The planted landscape under Ray's real Tuner: good trials start slowly and curves cross."""

import importlib
import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from segray.core.errors import ConfigError
from segray.tune import ray_tune
from segray.tune.controller import SweepController
from segray.tune.ray_tune import TrialRunners
from segray.tune.schedulers.build import build_scheduler
from segray.tune.search import build_search
from segray.tune.trial import State


@pytest.fixture
def landscape(ray_cluster, plugins, monkeypatch):
    """The module with the landscape, where the cluster's workers find it too."""
    shutil.copy(Path(__file__).with_name("landscape.py"), plugins / "landscape.py")
    monkeypatch.syspath_prepend(plugins)
    return importlib.import_module("landscape")


def searched(landscape, folder, seed, **over):
    """Returns how far the best trial's end is from the optimum's, and the share of all steps that were made."""
    made = landscape.settings(**{"tune.seed": seed} | over)
    controller = SweepController(build_scheduler(made), build_search(made), made.tune.trials, made.tune.metrics)

    def task(trial):
        return json.dumps(
            {"number": trial.number, "values": trial.values, "step": trial.step, "every": 10, "seed": seed}
        )

    changed = []
    assert ray_tune.run_tune(controller, TrialRunners(landscape.Planted, 1, task, changed.append), folder) is None
    assert len(controller.trials) == made.tune.trials
    assert {trial.number for trial in changed} == set(range(made.tune.trials))
    best = max((trial for trial in controller.trials if trial.state is State.FINISHED), key=lambda one: one.value)
    made_steps = sum(trial.step for trial in controller.trials)
    regret = landscape.OPTIMUM - landscape.miou(best.values, landscape.STEPS)
    return regret, made_steps / (made.tune.trials * landscape.STEPS)


def test_a_trial_that_cannot_be_trained_fails_alone(landscape, tmp_path):
    def task(trial):
        if trial.number == 1:
            raise ConfigError("no crop of 100")
        return json.dumps({"number": trial.number, "values": trial.values, "step": 990, "every": 10, "seed": 0})

    made = landscape.settings(**{"tune.trials": 3, "tune.search": "random", "tune.scheduler": "none"})
    controller = SweepController(build_scheduler(made), build_search(made), 3, made.tune.metrics)
    assert ray_tune.run_tune(controller, TrialRunners(landscape.Planted, 2, task, [].append), tmp_path) is None
    assert [trial.state for trial in controller.trials] == [State.FINISHED, State.FAILED, State.FINISHED]
    assert controller.trials[1].reason == "no crop of 100"


def test_what_runs_when_the_budget_is_spent_waits_and_its_time_is_known(landscape, tmp_path):
    def task(trial):
        return json.dumps({"number": trial.number, "values": trial.values, "step": 0, "every": 1, "seed": 0})

    made = landscape.settings(**{"tune.trials": 2, "tune.search": "random", "tune.scheduler": "none"})
    controller, states = SweepController(build_scheduler(made), build_search(made), 2, made.tune.metrics), []

    def spent():
        return "enough" if any(trial.step >= 5 for trial in controller.trials) else None

    runners = TrialRunners(landscape.Planted, 1, task, lambda trial: states.append(trial.state))
    assert ray_tune.run_tune(controller, runners, tmp_path, spent) == "enough"
    assert (states[0], states[-1]) == (State.RUNNING, State.PENDING)
    assert controller.trials[0].seconds >= 5 * landscape.SECONDS


def test_halving_stops_the_bad_and_keeps_to_its_share(landscape, tmp_path):
    regret, share = searched(landscape, tmp_path, 0, **{"tune.trials": 16, "tune.search": "random"})
    assert share <= 0.25
    assert regret < 0.1


@pytest.mark.slow
def test_a_quarter_of_the_steps_ends_within_two_points_of_the_optimum_and_tpe_beats_chance(landscape, tmp_path, capsys):
    found = {
        search: [
            searched(landscape, tmp_path / f"{search}{seed}", seed, **{"tune.search": search}) for seed in range(10)
        ]
        for search in ("optuna", "random")
    }
    regrets = {search: median(regret for regret, _ in runs) for search, runs in found.items()}
    with capsys.disabled():
        print(f"\nregret, median of 10 seeds: TPE {regrets['optuna']:.4f}, random {regrets['random']:.4f};", end=" ")
        print(f"steps {max(share for runs in found.values() for _, share in runs):.3f} of 64 whole trials")
    assert all(share <= 0.25 for runs in found.values() for _, share in runs)
    assert regrets["optuna"] <= 0.02
    assert regrets["optuna"] < regrets["random"]
