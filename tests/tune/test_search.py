"""Where configurations come from."""

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


def settings(**over):
    tune = {"space": SPACE, **over}
    return config.build({"train.steps": 100, "optim.warmup_steps": 1, "tune": tune})


def goodness(values):
    near = 1 - 0.1 * abs(np.log10(values["optim.lr"] / 1e-3)) - 0.003 * abs(values["train.seed"] - 70)
    return float(near - 0.2 * (values["loss.terms"] != ["ohem"]))


def searched(made, number, known=()):
    search, trials = build_search(made, known), []
    for index in range(number):
        values = search.suggest(index, trials)
        if values is None:
            break
        trials.append(Trial(index, values, State.FINISHED, {100: goodness(values)}))
    return trials


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_next_is_a_function_of_seed_and_trials(search):
    made = settings(search=search, seed=3)
    trials = searched(made, 15)
    assert [build_search(made).suggest(n, trials[:n]) for n in range(15)] == [trial.values for trial in trials]
    assert searched(settings(search=search, seed=4), 15) != trials


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_what_is_suggested_lies_in_the_space(search):
    for trial in searched(settings(search=search), 20):
        assert 1e-5 <= trial.values["optim.lr"] <= 1e-1
        assert trial.values["train.seed"] in range(101)
        assert trial.values["loss.terms"] in SPACE["loss.terms"]["choice"]


def test_a_grid_has_every_combination_once():
    over = {"space": {"data.flip_prob": {"choice": [0, 1]}, "data.crop": {"choice": [32, 64, 96]}}, "search": "grid"}
    made, found = settings(**over), []
    search = build_search(made)
    while (values := search.suggest(len(found), [])) is not None:
        found.append(tuple(values.values()))
    assert sorted(found) == [(flip, crop) for flip in (0, 1) for crop in (32, 64, 96)]


def test_tpe_finds_more_than_chance():
    best = {
        search: np.median(
            [max(goodness(one.values) for one in searched(settings(search=search, seed=seed), 40)) for seed in range(5)]
        )
        for search in ("random", "optuna")
    }
    assert best["optuna"] > best["random"]


def test_what_is_minimised_is_searched_for_the_least():
    def found(sign, metric):
        trials = searched(settings(search="random"), 60)
        for trial in trials:
            trial.curve = {100: sign * goodness(trial.values)}
        drawn = [build_search(settings(metric=metric, seed=seed)).suggest(60, trials) for seed in range(16)]
        return float(np.mean([goodness(values) for values in drawn]))

    # A trial's curve is the higher the better, whatever the metric: that of a loss is below zero.
    assert found(1, "train/loss") == found(1, "val/miou") > found(-1, "train/loss") + 0.2


def test_a_trial_that_failed_teaches_nothing():
    made = settings()
    trials = searched(made, 15)
    failed = Trial(15, trials[0].values, State.FAILED, {100: 1.0})
    assert build_search(made).suggest(16, [*trials, failed]) == build_search(made).suggest(16, trials)


def test_an_earlier_sweep_spares_the_start():
    known = [
        PriorTrial(trial.values, {"val/miou": goodness(trial.values)})
        for trial in searched(settings(search="random"), 30)
    ]
    cold = np.mean([goodness(one.values) for one in searched(settings(), 8)])
    warm = np.mean([goodness(one.values) for one in searched(settings(), 8, known)])
    assert warm > cold + 0.05


def test_several_objectives_are_searched():
    made = settings(metric=["val/miou", "cost/parameters"])
    trials = searched(made, 3)
    for trial in trials:
        trial.other_metrics = {"cost/parameters": 1e6}
    trials[2].other_metrics = {}  # not known yet
    assert build_search(made).suggest(3, trials) is not None


def test_who_was_stopped_counts_with_what_it_would_have_ended_at():
    steps = range(10, 60, 10)
    trials = []
    for number in range(30):
        values = {"optim.lr": 1e-3, "train.seed": number * 3, "loss.terms": [["cross_entropy"], ["ohem"]][number % 2]}
        level, time = ((0.9, 60), (0.5, 10))[number % 2]  # slow and good, fast and bad
        curve = {step: level * (1 - np.exp(-step / time)) for step in steps}
        trials.append(Trial(number, values, State.PAUSED, curve))
    assert trials[0].value < trials[1].value + 0.1
    drawn = [build_search(settings(seed=seed)).suggest(30, trials)["loss.terms"] for seed in range(12)]
    assert drawn.count(["cross_entropy"]) > 8


def test_trials_that_run_already_are_not_suggested_again():
    made = settings(seed=1)
    trials = searched(made, 15)
    alone = build_search(made).suggest(15, trials)
    running = [Trial(15 + place, alone, State.RUNNING) for place in range(6)]
    assert build_search(made).suggest(15, [*trials, *running]) != alone
