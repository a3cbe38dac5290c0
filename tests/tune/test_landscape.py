"""The synthetic landscape with Ray's real Tuner: good trials start slowly and curves cross."""

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
    """The module with the landscape, importable by the cluster's workers too."""
    shutil.copy(Path(__file__).with_name("landscape.py"), plugins / "landscape.py")
    monkeypatch.syspath_prepend(plugins)
    return importlib.import_module("landscape")


def run_search(landscape, folder, seed, **over):
    """Returns the regret of the best trial, and the fraction of all steps that ran."""
    sweep_config = landscape.settings(**{"tune.seed": seed} | over)
    controller = SweepController(
        build_scheduler(sweep_config), build_search(sweep_config), sweep_config.tune.trials, sweep_config.tune.metrics
    )

    def task(trial):
        return json.dumps(
            {"number": trial.number, "values": trial.values, "step": trial.step, "every": 10, "seed": seed}
        )

    changed = []
    assert (
        ray_tune.run_tune(controller, TrialRunners(landscape.SyntheticTrainable, 1, task, changed.append), folder)
        is None
    )
    assert len(controller.trials) == sweep_config.tune.trials
    assert {trial.number for trial in changed} == set(range(sweep_config.tune.trials))
    best = max((trial for trial in controller.trials if trial.state is State.FINISHED), key=lambda trial: trial.value)
    num_steps = sum(trial.step for trial in controller.trials)
    regret = landscape.OPTIMUM - landscape.miou(best.values, landscape.STEPS)
    return regret, num_steps / (sweep_config.tune.trials * landscape.STEPS)


def test_invalid_settings_fail_only_their_trial(landscape, tmp_path):
    def task(trial):
        if trial.number == 1:
            raise ConfigError("no crop of 100")
        return json.dumps({"number": trial.number, "values": trial.values, "step": 990, "every": 10, "seed": 0})

    sweep_config = landscape.settings(**{"tune.trials": 3, "tune.search": "random", "tune.scheduler": "none"})
    controller = SweepController(
        build_scheduler(sweep_config), build_search(sweep_config), 3, sweep_config.tune.metrics
    )
    assert (
        ray_tune.run_tune(controller, TrialRunners(landscape.SyntheticTrainable, 2, task, [].append), tmp_path) is None
    )
    assert [trial.state for trial in controller.trials] == [State.FINISHED, State.FAILED, State.FINISHED]
    assert controller.trials[1].reason == "no crop of 100"


def test_trials_that_run_when_the_budget_is_exhausted_are_pending_with_their_run_time(landscape, tmp_path):
    def task(trial):
        return json.dumps({"number": trial.number, "values": trial.values, "step": 0, "every": 1, "seed": 0})

    sweep_config = landscape.settings(**{"tune.trials": 2, "tune.search": "random", "tune.scheduler": "none"})
    controller, states = (
        SweepController(build_scheduler(sweep_config), build_search(sweep_config), 2, sweep_config.tune.metrics),
        [],
    )

    def spent():
        return "enough" if any(trial.step >= 5 for trial in controller.trials) else None

    runners = TrialRunners(landscape.SyntheticTrainable, 1, task, lambda trial: states.append(trial.state))
    assert ray_tune.run_tune(controller, runners, tmp_path, spent) == "enough"
    assert (states[0], states[-1]) == (State.RUNNING, State.PENDING)
    assert controller.trials[0].seconds >= 5 * landscape.SECONDS


def test_asha_stops_bad_trials_and_keeps_its_number_of_steps(landscape, tmp_path):
    regret, share = run_search(landscape, tmp_path, 0, **{"tune.trials": 16, "tune.search": "random"})
    assert share <= 0.25
    assert regret < 0.1


@pytest.mark.slow
def test_a_quarter_of_the_steps_ends_near_the_optimum_and_tpe_beats_random_search(landscape, tmp_path, capsys):
    runs_by_search = {
        search: [
            run_search(landscape, tmp_path / f"{search}{seed}", seed, **{"tune.search": search}) for seed in range(10)
        ]
        for search in ("optuna", "random")
    }
    regrets = {search: median(regret for regret, _ in runs) for search, runs in runs_by_search.items()}
    with capsys.disabled():
        print(f"\nregret, median of 10 seeds: TPE {regrets['optuna']:.4f}, random {regrets['random']:.4f};", end=" ")
        print(f"steps {max(share for runs in runs_by_search.values() for _, share in runs):.3f} of 64 whole trials")
    assert all(share <= 0.25 for runs in runs_by_search.values() for _, share in runs)
    assert regrets["optuna"] <= 0.02
    assert regrets["optuna"] < regrets["random"]
