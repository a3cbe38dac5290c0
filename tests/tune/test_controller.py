"""A sweep that dies at any moment and goes on tries the same trials, each once, and ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray import config
from segray.tracking.journal import Journal
from segray.tune.controller import WORST, SweepController
from segray.tune.journal import SweepJournal, trial_dir
from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.schedulers.build import build_scheduler, rung_steps
from segray.tune.search import build_search
from segray.tune.trial import State, Trial

STEPS, EVERY = 80, 10
RUNGS = rung_steps(12, EVERY, STEPS)
MODES = [("asha", "random"), ("asha", "optuna"), ("median", "grid"), ("none", "optuna"), ("pbt", "random")]


def sweep_of(scheduler, search, trials=None):
    made = config.build(
        {
            "train": {"steps": STEPS, "val_every": EVERY},
            "optim.warmup_steps": 1,
            "tune": {
                "space": {"data.flip_prob": {"choice": [0.1, 0.2, 0.3]}, "optim.lr": {"choice": [1e-3, 1e-2, 1e-1]}},
                "trials": 9,
                "scheduler": scheduler,
                "search": search,
            },
        }
    )
    return SweepController(build_scheduler(made), build_search(made), 9, made.tune.metrics, trials or [])


def value(trial, step):
    return trial.values["data.flip_prob"] * (1 - np.exp(-step / 20)) + 0.001 * trial.number


class Runs:
    """The runs of a sweep's trials as their journals have them: they go on for a moment after they are to pause."""

    def __init__(self, folder, random):
        self.record, self.random = SweepJournal(folder, ("val/miou",)), random

    def journal(self, number):
        trial_dir(self.record.folder, number).mkdir(exist_ok=True)
        return Journal(trial_dir(self.record.folder, number))

    def begins(self, trial):
        """Has a trial begin with its donor's checkpoint, if it is to copy one; returns what was judged last."""
        self.record.log_state(trial)
        if trial.copy_from is None:
            return trial.step
        self.journal(trial.number).write("rewound", step=self.journal(trial.copy_from).last_step())
        return self.journal(trial.number).last_step()

    def validates(self, trial, step):
        found = {"val/miou": value(trial, step)}
        if step > self.journal(trial.number).last_step():  # or it went on for a moment when it was to pause
            self.journal(trial.number).write("metrics", step=step, values=found)
        return found

    def ends(self, trial, step):
        if trial.state is State.PAUSED and step < STEPS and self.random.random() < 0.3:
            self.validates(trial, step + EVERY)
        self.record.log_state(trial)


def run(sweeping, at_once, random, runs, events=None):
    """Runs a sweep, for so many events at most; returns whether it came to its end."""
    at_work = {}
    while events is None or events > 0:
        while len(at_work) < at_once and (trial := sweeping.next_trial()) is not None:
            at_work[trial.number] = runs.begins(trial)
        if not at_work:
            assert sweeping.is_over
            return True
        number = sorted(at_work)[random.integers(len(at_work))]
        trial = sweeping.trials[number]
        step = at_work[number] = at_work[number] + EVERY
        verdict = sweeping.on_result(trial, step, runs.validates(trial, step))
        if verdict is not SchedulerDecision.CONTINUE or step >= STEPS:
            del at_work[number]
            if verdict is SchedulerDecision.CONTINUE:
                sweeping.on_end(trial, State.FINISHED)
            runs.ends(trial, step)
        events = None if events is None else events - 1
    return False


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 3), st.integers(0, 60), st.integers(0, 10**6))
def test_a_sweep_that_goes_on_ends_with_the_same_trials(tmp_path_factory, mode, at_once, events, seed):
    random = np.random.default_rng(seed)
    runs = Runs(tmp_path_factory.mktemp("sweep"), random)
    while True:
        sweeping = sweep_of(*mode, trials=runs.record.load_trials())
        sweeping.on_suggested = runs.record.log_suggestion
        if run(sweeping, at_once, random, runs, events):
            break
        events += 20
    sweeping.close("over")
    assert [trial.number for trial in sweeping.trials] == list(range(9))
    assert all(trial.state in (State.FINISHED, State.STOPPED) for trial in sweeping.trials)
    assert any(trial.state is State.FINISHED for trial in sweeping.trials)
    if mode[0] == "asha":
        assert sum(trial.step > RUNGS[0] for trial in sweeping.trials) <= 9 // 4 + at_once
    if mode[1] != "optuna" and mode[0] != "pbt":  # TPE follows what was found by then, in whatever order that was
        fresh = sweep_of(*mode)
        values = [fresh.search.suggest(number, []) for number in range(9)]
        assert [trial.values for trial in sweeping.trials] == values


def test_a_copy_stands_where_its_donor_stood():
    sweeping = sweep_of("pbt", "random")
    trial = sweeping.next_trial()
    for step in (10, 20, 30, 40):
        sweeping.on_result(trial, step, {"val/miou": 0.04})
    trial.copy_from = 1
    sweeping.on_result(trial, 30, {"val/miou": 0.55})
    assert (trial.step, trial.value, trial.copy_from) == (30, 0.55, None)


@pytest.mark.parametrize("mode", MODES)
def test_nobody_is_suggested_before_it_is_written_down(tmp_path, mode):
    sweeping, written = sweep_of(*mode), []
    sweeping.on_suggested = lambda trial: written.append((trial.number, len(sweeping.trials)))
    run(sweeping, 2, np.random.default_rng(0), Runs(tmp_path, np.random.default_rng(0)))
    assert written == [(number, number) for number in range(9)]


def test_to_ask_whether_it_is_over_changes_nothing():
    paused = [Trial(number, {}, State.PAUSED, {20: (9 - number) / 10}) for number in range(9)]
    sweeping = sweep_of("asha", "random", trials=paused)
    for going_on in (0, 1):  # room for two of nine
        assert [sweeping.is_over, sweeping.is_over] == [False, False]
        assert sweeping.next_trial() is paused[going_on]
    assert sweeping.next_trial() is None


def test_the_last_one_left_goes_to_the_end_without_a_stop():
    paused = [Trial(number, {}, State.PAUSED, {20: 0.5}) for number in range(9)]
    sweeping = sweep_of("asha", "random", trials=paused[:3])
    sweeping.max_trials = 3
    last = sweeping.next_trial()
    verdicts = [sweeping.on_result(last, step, {"val/miou": 0.6}) for step in range(30, STEPS, EVERY)]
    assert set(verdicts) == {SchedulerDecision.CONTINUE}


def test_a_trial_without_the_metric_is_worst():
    sweeping = sweep_of("asha", "random")
    trial = sweeping.next_trial()
    sweeping.on_result(trial, 10, {"val/aacc": 0.9})
    assert trial.value == WORST


def test_what_is_minimised_is_told_by_its_name():
    made = config.build(
        {"tune": {"space": {"data.flip_prob": {"choice": [0, 1]}}, "metrics": "[train/loss, cost/gmac]"}}
    )
    sweeping = SweepController(build_scheduler(made), build_search(made), 2, made.tune.metrics)
    trial = sweeping.next_trial()
    sweeping.on_result(trial, 10, {"train/loss": 2.5, "cost/gmac": 3.0})
    assert (trial.value, trial.other_metrics) == (-2.5, {"cost/gmac": 3.0})
