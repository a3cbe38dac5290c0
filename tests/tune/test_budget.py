"""Budgets and limits that end a sweep before all its trials are over."""

from pathlib import Path

import pytest

from segray import config
from segray.tune.controller import SweepController
from segray.tune.estimate import SweepEstimate
from segray.tune.schedulers.build import build_scheduler
from segray.tune.search import build_search
from segray.tune.sweep import SweepView, exhausted_budget
from segray.tune.trial import State, Trial


def view(budget, trials, hours=0.0):
    tune = {"space": {"optim.lr": {"choice": [1e-3, 1e-4]}}, "budget": budget}
    settings = config.build({"train.workers": 2, "tune": tune})
    controller = SweepController(build_scheduler(settings), build_search(settings), 9, settings.tune.metrics, trials)
    return SweepView(settings, Path(), SweepEstimate(9, 1, 9, 9, None, None), controller, lambda: hours * 3600)


def trials(**states):
    return [
        Trial(number, {}, State(state), {1: 0.1} if state != "failed" else {}, seconds=900.0)
        for number, state in enumerate(name for name, count in states.items() for _ in range(count))
    ]


@pytest.mark.parametrize(
    ("budget", "sweep_trials", "hours", "expected"),
    [
        ({}, trials(finished=9), 99, None),
        ({"hours": 2}, [], 1.9, None),
        ({"hours": 2}, [], 2.1, "tune.budget.hours, 2, is exhausted"),
        ({"gpu_hours": 2.1}, trials(finished=4), 0, None),  # a quarter of an hour each, two workers
        ({"gpu_hours": 2}, trials(finished=3, running=1), 0, "tune.budget.gpu_hours, 2, is exhausted"),
        ({"trials": 3}, trials(finished=1, stopped=1, failed=1), 0, "tune.budget.trials, 3, is exhausted"),
        ({"trials": 3}, trials(finished=1, paused=5, running=2), 0, None),
        ({}, trials(failed=5), 0, "5 trials failed, and no trial was validated"),
        ({}, trials(failed=5, running=1), 0, None),
    ],
)
def test_an_exhausted_budget_is_described(budget, sweep_trials, hours, expected):
    assert exhausted_budget(view(budget, sweep_trials, hours), 0) == expected


def test_trials_that_failed_before_a_resume_do_not_count():
    assert exhausted_budget(view({}, trials(failed=6)), 2) is None
    assert exhausted_budget(view({}, trials(failed=7)), 2) is not None
