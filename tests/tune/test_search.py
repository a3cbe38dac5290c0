"""Searchers: random, grid and TPE."""

import numpy as np
import pytest

from segray import config
from segray.tune.search import PriorTrial, build_search
from segray.tune.trial import State, Trial

SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-1]},
    "train.seed": {"int": [0, 100]},
    "loss.terms": {"choice": [["cross_entropy"], ["ohem"], ["focal"]]},
}


def settings(**overrides):
    tune = {"space": SPACE, **overrides}
    return config.build({"train.steps": 100, "optim.warmup_steps": 1, "tune": tune})


def goodness(values):
    score = 1 - 0.1 * abs(np.log10(values["optim.lr"] / 1e-3)) - 0.003 * abs(values["train.seed"] - 70)
    return float(score - 0.2 * (values["loss.terms"] != ["ohem"]))


def run_search(sweep_config, number, prior_trials=()):
    search, trials = build_search(sweep_config, prior_trials), []
    for index in range(number):
        values = search.suggest(index, trials)
        if values is None:
            break
        trials.append(Trial(index, values, State.FINISHED, {100: goodness(values)}))
    return trials


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_suggestion_depends_only_on_the_seed_and_the_trials(search):
    sweep_config = settings(search=search, seed=3)
    trials = run_search(sweep_config, 15)
    assert [build_search(sweep_config).suggest(n, trials[:n]) for n in range(15)] == [trial.values for trial in trials]
    assert run_search(settings(search=search, seed=4), 15) != trials


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_suggestions_are_in_the_space(search):
    for trial in run_search(settings(search=search), 20):
        assert 1e-5 <= trial.values["optim.lr"] <= 1e-1
        assert trial.values["train.seed"] in range(101)
        assert trial.values["loss.terms"] in SPACE["loss.terms"]["choice"]


def test_a_grid_has_every_combination_once():
    overrides = {
        "space": {"data.flip_prob": {"choice": [0, 1]}, "data.crop": {"choice": [32, 64, 96]}},
        "search": "grid",
    }
    sweep_config, points = settings(**overrides), []
    search = build_search(sweep_config)
    while (values := search.suggest(len(points), [])) is not None:
        points.append(tuple(values.values()))
    assert sorted(points) == [(flip, crop) for flip in (0, 1) for crop in (32, 64, 96)]


def test_tpe_beats_random_search():
    best = {
        search: np.median(
            [
                max(goodness(one.values) for one in run_search(settings(search=search, seed=seed), 40))
                for seed in range(5)
            ]
        )
        for search in ("random", "optuna")
    }
    assert best["optuna"] > best["random"]


def test_metrics_with_a_minimum_are_minimised():
    def mean_goodness(sign, metric):
        trials = run_search(settings(search="random"), 60)
        for trial in trials:
            trial.curve = {100: sign * goodness(trial.values)}
        suggestions = [build_search(settings(metrics=metric, seed=seed)).suggest(60, trials) for seed in range(16)]
        return float(np.mean([goodness(values) for values in suggestions]))

    # Higher values of a trial's curve are better for every metric: those of a loss are negative.
    assert mean_goodness(1, "train/loss") == mean_goodness(1, "val/miou") > mean_goodness(-1, "train/loss") + 0.2


def test_failed_trials_are_ignored():
    sweep_config = settings()
    trials = run_search(sweep_config, 15)
    failed = Trial(15, trials[0].values, State.FAILED, {100: 1.0})
    assert build_search(sweep_config).suggest(16, [*trials, failed]) == build_search(sweep_config).suggest(16, trials)


def test_a_warm_start_has_better_first_trials():
    prior_trials = [
        PriorTrial(trial.values, {"val/miou": goodness(trial.values)})
        for trial in run_search(settings(search="random"), 30)
    ]
    cold = np.mean([goodness(one.values) for one in run_search(settings(), 8)])
    warm = np.mean([goodness(one.values) for one in run_search(settings(), 8, prior_trials)])
    assert warm > cold + 0.05


def test_several_objectives_are_optimised():
    sweep_config = settings(metrics=["val/miou", "cost/parameters"])
    trials = run_search(sweep_config, 3)
    for trial in trials:
        trial.other_metrics = {"cost/parameters": 1e6}
    trials[2].other_metrics = {}  # not known yet
    assert build_search(sweep_config).suggest(3, trials) is not None


def test_paused_trials_count_with_their_forecast():
    steps = range(10, 60, 10)
    trials = []
    for number in range(30):
        values = {"optim.lr": 1e-3, "train.seed": number * 3, "loss.terms": [["cross_entropy"], ["ohem"]][number % 2]}
        level, time = ((0.9, 60), (0.5, 10))[number % 2]  # slow and good, fast and bad
        curve = {step: level * (1 - np.exp(-step / time)) for step in steps}
        trials.append(Trial(number, values, State.PAUSED, curve))
    assert trials[0].value < trials[1].value + 0.1
    suggestions = [build_search(settings(seed=seed)).suggest(30, trials)["loss.terms"] for seed in range(12)]
    assert suggestions.count(["cross_entropy"]) > 8


def test_settings_of_running_trials_are_not_suggested_again():
    sweep_config = settings(seed=1)
    trials = run_search(sweep_config, 15)
    alone = build_search(sweep_config).suggest(15, trials)
    running = [Trial(15 + place, alone, State.RUNNING) for place in range(6)]
    assert build_search(sweep_config).suggest(15, [*trials, *running]) != alone
