"""Schedulers: properties that hold for all curves, and small cases computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.tune.controller import SweepController
from segray.tune.schedulers.asha import AsyncSuccessiveHalving
from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.schedulers.build import rung_steps
from segray.tune.schedulers.median import MedianStopping
from segray.tune.schedulers.pbt import FACTORS, PopulationBasedTraining
from segray.tune.space import Dimension
from segray.tune.trial import State, Trial

LAST = 80


class NumberSearch:
    """Searcher whose settings are the number of the trial."""

    def suggest(self, number, trials):
        return {"n": number}


def run_sweep(scheduler, num_trials, value, max_concurrent=1, seed=0, every=10):
    """Runs trials with the given values in random order, and returns them."""
    controller = SweepController(scheduler, NumberSearch(), num_trials, ("val/miou",))
    random, running = np.random.default_rng(seed), []
    steps = {}
    while True:
        while len(running) < max_concurrent and (trial := controller.next_trial()) is not None:
            running.append(trial)
        if not running:
            break
        trial = running[random.integers(len(running))]
        steps[trial.number] = steps.get(trial.number, 0) + every
        step = steps[trial.number]
        decision = controller.on_result(trial, step, {"val/miou": value(trial, step)})
        if decision is SchedulerDecision.CONTINUE and step < LAST:
            continue
        running.remove(trial)
        if decision is SchedulerDecision.CONTINUE:
            controller.on_end(trial, State.FINISHED)
    assert controller.is_over
    controller.close("over")
    return controller.trials


def flat_value(trial, step):
    return trial.number / 100


@pytest.mark.parametrize(
    ("grace", "every", "steps", "rungs"),
    [
        (15, 1, 100, (15, 30)),
        (15, 10, 100, (20, 30)),
        (10, 50, 100, (50,)),
        (60, 10, 100, (60,)),
        (5, 100, 100, ()),
        (100, 10, 100, ()),
        (150, 10, 1000, (150, 300)),
    ],
)
def test_rungs_are_at_validations_before_the_end(grace, every, steps, rungs):
    assert rung_steps(grace, every, steps) == rungs


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.sampled_from([2.0, 3.0, 4.0]), st.integers(1, 5), st.integers(0, 10**6))
def test_at_most_one_of_reduction_factor_trials_passes_a_rung_and_one_finishes(
    num_trials, reduction, max_concurrent, seed
):
    values = np.random.default_rng(seed).random((num_trials, LAST + 1))
    trials = run_sweep(
        AsyncSuccessiveHalving((20, 40), reduction, LAST),
        num_trials,
        lambda trial, step: values[trial.number][step],
        max_concurrent,
        seed,
    )
    assert len(trials) == num_trials
    reached = [sum(trial.step >= rung for trial in trials) for rung in (20, 40)]
    promoted = [sum(trial.step > rung for trial in trials) for rung in (20, 40)]
    assert reached[0] == num_trials
    for num_reached, num_promoted in zip(reached, promoted, strict=True):
        assert num_promoted <= max(1, int(num_reached / reduction))
    assert sum(trial.state is State.FINISHED for trial in trials) >= 1
    assert {trial.state for trial in trials} <= {State.FINISHED, State.STOPPED}


def test_a_paused_trial_resumes_once_it_is_among_the_best():
    values = {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2}  # the first one has no competitors
    trials = run_sweep(AsyncSuccessiveHalving((20,), 4, LAST), 4, lambda trial, step: values[trial.number])
    assert [trial.step for trial in trials] == [LAST, 20, 20, 20]


def test_a_rung_compares_forecasts():
    levels = {0: (0.6, 8), 1: (0.75, 25), 2: (0.5, 8), 3: (0.4, 8)}

    def rising(trial, step):
        level, time = levels[trial.number]
        return level * (1 - np.exp(-step / time))

    trials = run_sweep(AsyncSuccessiveHalving((24,), 4, LAST), 4, rising, every=4)
    assert rising(trials[0], 24) > rising(trials[1], 24)
    assert [trial.number for trial in trials if trial.state is State.FINISHED] == [1]


def test_a_failed_trial_is_not_promoted():
    trials = [Trial(number, {}, State.PAUSED, {20: value}) for number, value in enumerate((0.9, 0.5, 0.4))]
    assert AsyncSuccessiveHalving((20,), 2, LAST).next_to_resume(trials, False) is trials[0]  # room for one of three
    trials[0].state = State.FAILED
    assert AsyncSuccessiveHalving((20,), 2, LAST).next_to_resume(trials, False) is trials[1]


def test_a_trial_below_the_median_of_three_others_is_stopped():
    scheduler = MedianStopping(20, LAST)
    others = [Trial(number, {}, State.FINISHED, {10: value, 20: value}) for number, value in enumerate((0.1, 0.5, 0.9))]

    def decision(value, step=20, others_so_far=others):
        trial = Trial(9, {}, State.RUNNING, {step: value})
        return scheduler.on_result(trial, [*others_so_far, trial], False)

    assert decision(0.49) is SchedulerDecision.STOP
    assert decision(0.5) is SchedulerDecision.CONTINUE
    assert decision(0.0, step=10) is SchedulerDecision.CONTINUE
    assert decision(0.0, others_so_far=others[:2]) is SchedulerDecision.CONTINUE


SPACE = (Dimension("lr", "loguniform", (1e-4, 1e-1)), Dimension("crop", "choice", (32, 64, 96)))


def population(resample=0.0):
    return PopulationBasedTraining(SPACE, 20, LAST, 0.25, resample, 0)


def four_trials(step=20):
    return [
        Trial(number, {"lr": 1e-2, "crop": 64}, State.RUNNING, {10: 0.1, step: (number + 1) / 10})
        for number in range(4)
    ]


def test_the_worst_trial_copies_the_best_with_perturbed_settings():
    trials = four_trials()
    trials[3].values = {"lr": 3e-2, "crop": 32}
    assert population().on_result(trials[0], trials, False) is SchedulerDecision.PAUSE
    assert trials[0].copy_from == 3
    assert trials[0].values["lr"] in [pytest.approx(3e-2 * factor) for factor in FACTORS]
    assert trials[0].values["crop"] in (32, 64)
    for other in trials[1:]:
        assert population().on_result(other, trials, True) is SchedulerDecision.CONTINUE
        assert other.copy_from is None


def test_perturbed_settings_stay_in_the_space():
    for seed in range(50):
        trials = four_trials()
        trials[3].values = {"lr": 0.1, "crop": 96}
        PopulationBasedTraining(SPACE, 20, LAST, 0.25, 0.5, seed).on_result(trials[0], trials, False)
        assert all(dimension.contains(trials[0].values[dimension.key]) for dimension in SPACE)


def test_no_trial_copies_between_perturbations_or_at_the_end():
    assert population().on_result(four_trials(15)[0], four_trials(15), False) is SchedulerDecision.CONTINUE
    assert population().on_result(four_trials(LAST)[0], four_trials(LAST), False) is SchedulerDecision.CONTINUE


def test_the_trial_with_the_fewest_steps_resumes_first():
    trials = four_trials()
    assert population().on_result(trials[3], trials, False) is SchedulerDecision.PAUSE  # a new trial takes its place
    trials[1].state = trials[2].state = State.PAUSED
    trials[1].curve[30] = 0.5
    assert population().on_result(trials[3], trials, True) is SchedulerDecision.PAUSE  # paused trials take its place
    assert population().next_to_resume(trials, False) is trials[2]
