"""A sweep that is interrupted at any moment and resumed has the same trials, each once, and ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray import config
from segray.tracking.journal import Journal
from segray.tune.controller import WORST, SweepController
from segray.tune.journal import SweepJournal, trial_dir
from segray.tune.results import best_trial
from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.schedulers.build import build_scheduler, rung_steps
from segray.tune.search import build_search
from segray.tune.trial import State, Trial

STEPS, EVERY = 80, 10
RUNGS = rung_steps(12, EVERY, STEPS)
MODES = [("asha", "random"), ("asha", "optuna"), ("median", "grid"), ("none", "optuna"), ("pbt", "random")]


def build_controller(scheduler, search, trials=None):
    sweep_config = config.build(
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
    return SweepController(
        build_scheduler(sweep_config), build_search(sweep_config), 9, sweep_config.tune.metrics, trials or []
    )


def value(trial, step):
    return trial.values["data.flip_prob"] * (1 - np.exp(-step / 20)) + 0.001 * trial.number


class RunSimulator:
    """Simulates the journals of the trials' runs. A run may continue for a moment after its trial is paused."""

    def __init__(self, folder, random):
        self.record, self.random = SweepJournal(folder, ("val/miou",)), random

    def journal(self, number):
        trial_dir(self.record.folder, number).mkdir(exist_ok=True)
        return Journal(trial_dir(self.record.folder, number))

    def start_segment(self, trial):
        """Starts a trial, from the checkpoint of its donor if it has one, and returns the last validated step."""
        self.record.log_state(trial)
        if trial.copy_from is None:
            return trial.step
        self.journal(trial.number).write("rewound", step=self.journal(trial.copy_from).last_step())
        return self.journal(trial.number).last_step()

    def validate(self, trial, step):
        metrics = {"val/miou": value(trial, step)}
        if step > self.journal(trial.number).last_step():  # otherwise the run validated this step before its pause
            self.journal(trial.number).write("metrics", step=step, values=metrics)
        return metrics

    def end_segment(self, trial, step):
        if trial.state is State.PAUSED and step < STEPS and self.random.random() < 0.3:
            self.validate(trial, step + EVERY)
        self.record.log_state(trial)


def run(controller, max_concurrent, random, runs, max_events=None):
    """Runs a sweep for at most `max_events` validations; returns True if the sweep is over."""
    running = {}
    while max_events is None or max_events > 0:
        while len(running) < max_concurrent and (trial := controller.next_trial()) is not None:
            running[trial.number] = runs.start_segment(trial)
        if not running:
            assert controller.is_over
            return True
        number = sorted(running)[random.integers(len(running))]
        trial = controller.trials[number]
        step = running[number] = running[number] + EVERY
        decision = controller.on_result(trial, step, runs.validate(trial, step))
        if decision is not SchedulerDecision.CONTINUE or step >= STEPS:
            del running[number]
            if decision is SchedulerDecision.CONTINUE:
                controller.on_end(trial, State.FINISHED)
            runs.end_segment(trial, step)
        max_events = None if max_events is None else max_events - 1
    return False


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 3), st.integers(0, 60), st.integers(0, 10**6))
def test_an_interrupted_and_resumed_sweep_has_the_same_trials(tmp_path_factory, mode, max_concurrent, max_events, seed):
    random = np.random.default_rng(seed)
    runs = RunSimulator(tmp_path_factory.mktemp("sweep"), random)
    while True:
        controller = build_controller(*mode, trials=runs.record.load_trials())
        controller.on_suggested = runs.record.log_suggestion
        if run(controller, max_concurrent, random, runs, max_events):
            break
        max_events += 20
    controller.close("over")
    assert [trial.number for trial in controller.trials] == list(range(9))
    assert all(trial.state in (State.FINISHED, State.STOPPED) for trial in controller.trials)
    assert any(trial.state is State.FINISHED for trial in controller.trials)
    assert [trial.best for trial in runs.record.load_trials()] == [trial.best for trial in controller.trials]
    if mode[0] == "asha":
        assert sum(trial.step > RUNGS[0] for trial in controller.trials) <= 9 // 4 + max_concurrent
    if mode[1] != "optuna" and mode[0] != "pbt":  # TPE depends on the order of the results
        fresh = build_controller(*mode)
        values = [fresh.search.suggest(number, []) for number in range(9)]
        assert [trial.values for trial in controller.trials] == values


def test_a_copy_resumes_at_the_step_of_its_donor():
    controller = build_controller("pbt", "random")
    trial = controller.next_trial()
    for step in (10, 20, 30, 40):
        controller.on_result(trial, step, {"val/miou": 0.04})
    trial.copy_from = 1
    controller.on_result(trial, 30, {"val/miou": 0.55})
    assert (trial.step, trial.value, trial.copy_from) == (30, 0.55, None)


def test_values_before_a_copy_do_not_count_because_their_checkpoints_are_removed():
    controller = build_controller("pbt", "random")
    trial, other = controller.next_trial(), controller.next_trial()
    controller.on_result(trial, 10, {"val/miou": 0.70})
    trial.copy_from, trial.state = 1, State.PENDING
    assert trial.best == 0.70
    assert controller.next_trial() is trial  # its run now starts from the copy
    assert trial.best is None
    for step, miou in ((10, 0.60), (20, 0.65)):  # the checkpoint of the donor was older
        controller.on_result(trial, step, {"val/miou": miou})
    controller.on_result(other, 10, {"val/miou": 0.66})
    assert (trial.best, other.best) == (0.65, 0.66)
    for ended in (trial, other):
        controller.on_end(ended, State.FINISHED)
    assert best_trial([trial, other]) is other


@pytest.mark.parametrize("mode", MODES)
def test_each_trial_is_recorded_before_it_starts(tmp_path, mode):
    controller, written = build_controller(*mode), []
    controller.on_suggested = lambda trial: written.append((trial.number, len(controller.trials)))
    run(controller, 2, np.random.default_rng(0), RunSimulator(tmp_path, np.random.default_rng(0)))
    assert written == [(number, number) for number in range(9)]


def test_is_over_has_no_side_effects():
    paused = [Trial(number, {}, State.PAUSED, {20: (9 - number) / 10}) for number in range(9)]
    controller = build_controller("asha", "random", trials=paused)
    for number in (0, 1):  # room for two of nine
        assert [controller.is_over, controller.is_over] == [False, False]
        assert controller.next_trial() is paused[number]
    assert controller.next_trial() is None


def test_the_last_remaining_trial_runs_to_the_end():
    paused = [Trial(number, {}, State.PAUSED, {20: 0.5}) for number in range(9)]
    controller = build_controller("asha", "random", trials=paused[:3])
    controller.max_trials = 3
    last = controller.next_trial()
    decisions = [controller.on_result(last, step, {"val/miou": 0.6}) for step in range(30, STEPS, EVERY)]
    assert set(decisions) == {SchedulerDecision.CONTINUE}


def test_a_trial_without_the_metric_has_the_worst_value():
    controller = build_controller("asha", "random")
    trial = controller.next_trial()
    controller.on_result(trial, 10, {"val/aacc": 0.9})
    assert trial.value == WORST


def test_minimised_metrics_change_their_sign():
    sweep_config = config.build(
        {"tune": {"space": {"data.flip_prob": {"choice": [0, 1]}}, "metrics": "[train/loss, cost/gmac]"}}
    )
    controller = SweepController(
        build_scheduler(sweep_config), build_search(sweep_config), 2, sweep_config.tune.metrics
    )
    trial = controller.next_trial()
    controller.on_result(trial, 10, {"train/loss": 2.5, "cost/gmac": 3.0})
    assert (trial.value, trial.other_metrics) == (-2.5, {"cost/gmac": 3.0})
