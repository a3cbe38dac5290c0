"""Who goes on: properties that hold whatever the curves are, and small cases worked out by hand."""

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


class Numbered:
    """A search whose settings are their number."""

    def suggest(self, number, trials):
        return {"n": number}


def drive(policy, most, value, at_once=1, seed=0, every=10):
    """Runs trials whose value at a step is given, in random order; returns them and the largest number at work."""
    sweeping = SweepController(policy, Numbered(), most, ("val/miou",))
    random, at_work = np.random.default_rng(seed), []
    steps = {}
    while True:
        while len(at_work) < at_once and (trial := sweeping.next_trial()) is not None:
            at_work.append(trial)
        if not at_work:
            break
        trial = at_work[random.integers(len(at_work))]
        steps[trial.number] = steps.get(trial.number, 0) + every
        step = steps[trial.number]
        verdict = sweeping.on_result(trial, step, {"val/miou": value(trial, step)})
        if verdict is SchedulerDecision.CONTINUE and step < LAST:
            continue
        at_work.remove(trial)
        if verdict is SchedulerDecision.CONTINUE:
            sweeping.on_end(trial, State.FINISHED)
    assert sweeping.is_over
    sweeping.close("over")
    return sweeping.trials


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
def test_at_most_one_of_so_many_goes_beyond_a_rung_and_one_comes_to_the_end(most, reduction, at_once, seed):
    values = np.random.default_rng(seed).random((most, LAST + 1))
    trials = drive(
        AsyncSuccessiveHalving((20, 40), reduction, LAST),
        most,
        lambda one, step: values[one.number][step],
        at_once,
        seed,
    )
    assert len(trials) == most
    at = [sum(trial.step >= rung for trial in trials) for rung in (20, 40)]
    beyond = [sum(trial.step > rung for trial in trials) for rung in (20, 40)]
    assert at[0] == most
    for there, gone in zip(at, beyond, strict=True):
        assert gone <= max(1, int(there / reduction))
    assert sum(trial.state is State.FINISHED for trial in trials) >= 1
    assert {trial.state for trial in trials} <= {State.FINISHED, State.STOPPED}


def test_who_waits_goes_on_once_it_is_among_the_best():
    values = {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2}  # the first comes when there is nobody to beat
    trials = drive(AsyncSuccessiveHalving((20,), 4, LAST), 4, lambda one, step: values[one.number])
    assert [trial.step for trial in trials] == [LAST, 20, 20, 20]


def test_the_best_of_a_rung_are_those_whose_curves_end_highest():
    levels = {0: (0.6, 8), 1: (0.75, 25), 2: (0.5, 8), 3: (0.4, 8)}

    def rising(one, step):
        level, time = levels[one.number]
        return level * (1 - np.exp(-step / time))

    trials = drive(AsyncSuccessiveHalving((24,), 4, LAST), 4, rising, every=4)
    assert rising(trials[0], 24) > rising(trials[1], 24)
    assert [trial.number for trial in trials if trial.state is State.FINISHED] == [1]


def test_a_trial_that_failed_is_not_waited_for():
    trials = [Trial(number, {}, State.PAUSED, {20: value}) for number, value in enumerate((0.9, 0.5, 0.4))]
    assert AsyncSuccessiveHalving((20,), 2, LAST).next_to_resume(trials, False) is trials[0]  # room for one of three
    trials[0].state = State.FAILED
    assert AsyncSuccessiveHalving((20,), 2, LAST).next_to_resume(trials, False) is trials[1]


def test_below_the_median_of_three_others_a_trial_is_stopped():
    policy = MedianStopping(20, LAST)
    others = [Trial(number, {}, State.FINISHED, {10: value, 20: value}) for number, value in enumerate((0.1, 0.5, 0.9))]

    def verdict(value, step=20, among=others):
        one = Trial(9, {}, State.RUNNING, {step: value})
        return policy.on_result(one, [*among, one], False)

    assert verdict(0.49) is SchedulerDecision.STOP
    assert verdict(0.5) is SchedulerDecision.CONTINUE
    assert verdict(0.0, step=10) is SchedulerDecision.CONTINUE
    assert verdict(0.0, among=others[:2]) is SchedulerDecision.CONTINUE


SPACE = (Dimension("lr", "loguniform", (1e-4, 1e-1)), Dimension("crop", "choice", (32, 64, 96)))


def population(resample=0.0):
    return PopulationBasedTraining(SPACE, 20, LAST, 0.25, resample, 0)


def four(step=20):
    return [
        Trial(number, {"lr": 1e-2, "crop": 64}, State.RUNNING, {10: 0.1, step: (number + 1) / 10})
        for number in range(4)
    ]


def test_the_worst_copies_the_best_with_settings_nearby():
    trials = four()
    trials[3].values = {"lr": 3e-2, "crop": 32}
    assert population().on_result(trials[0], trials, False) is SchedulerDecision.PAUSE
    assert trials[0].copy_from == 3
    assert trials[0].values["lr"] in [pytest.approx(3e-2 * factor) for factor in FACTORS]
    assert trials[0].values["crop"] in (32, 64)
    for other in trials[1:]:
        assert population().on_result(other, trials, True) is SchedulerDecision.CONTINUE
        assert other.copy_from is None


def test_settings_that_are_moved_stay_in_the_space():
    for seed in range(50):
        trials = four()
        trials[3].values = {"lr": 0.1, "crop": 96}
        PopulationBasedTraining(SPACE, 20, LAST, 0.25, 0.5, seed).on_result(trials[0], trials, False)
        assert all(one.contains(trials[0].values[one.key]) for one in SPACE)


def test_between_two_looks_and_at_the_end_nobody_copies():
    assert population().on_result(four(15)[0], four(15), False) is SchedulerDecision.CONTINUE
    assert population().on_result(four(LAST)[0], four(LAST), False) is SchedulerDecision.CONTINUE


def test_who_has_come_least_far_has_its_turn():
    trials = four()
    assert (
        population().on_result(trials[3], trials, False) is SchedulerDecision.PAUSE
    )  # one that is to come waits for its place
    trials[1].state = trials[2].state = State.PAUSED
    trials[1].curve[30] = 0.5
    assert population().on_result(trials[3], trials, True) is SchedulerDecision.PAUSE  # others wait for its place
    assert population().next_to_resume(trials, False) is trials[2]
