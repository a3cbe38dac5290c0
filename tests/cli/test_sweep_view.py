"""What a person and a log see of a sweep."""

import io
from pathlib import Path

from segray import config
from segray.cli.parser import make_console
from segray.cli.sweep_view import SweepProgress, render_table
from segray.tune.controller import SweepController
from segray.tune.estimate import SweepEstimate
from segray.tune.schedulers.build import build_scheduler
from segray.tune.search import build_search
from segray.tune.sweep import SweepView
from segray.tune.trial import State, Trial


def view():
    tune = {"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 8, "budget": {"hours": 3}}
    made = config.build({"train.steps": 100, "train.val_every": 5, "optim.warmup_steps": 1, "tune": tune})
    trials = [
        Trial(0, {"optim.lr": 1e-3}, State.RUNNING, {50: 0.25, 100: 0.5}),
        Trial(1, {"optim.lr": 1e-4}, State.PAUSED, {15: 0.125}, reason="not among the best at step 15"),
        Trial(2, {"optim.lr": 1e-2}, State.FAILED, reason="no memory for [/data]"),
    ]
    sweeping = SweepController(build_scheduler(made), build_search(made), 8, made.tune.metrics, trials)
    return SweepView(made, Path("/results/sweep"), SweepEstimate(8, 2, 800, 230, 0.5, 1.0), sweeping, lambda: 60.0)


def test_a_log_says_what_it_will_cost_and_what_becomes_of_each_trial():
    out = io.StringIO()
    with SweepProgress(make_console(file=out)) as progress:
        progress.follow(view())
    said = out.getvalue()
    for part in (
        "sweep sweep: 8 trials of 100 steps, 2 concurrent",
        "optim.lr               0.0001 to 0.01 (log)",
        "optuna search, scheduler asha: about 230 of 800 steps (29%)",
        "about 30:00, 1.00 worker hours",
        "limited by tune.budget: hours 3",
        "trial   0 running   step 100/100  val/miou 0.5000  optim.lr 0.001",
        "trial   1 paused    step 15/100  val/miou 0.1250  optim.lr 0.0001  (not among the best at step 15)",
        "trial   2 failed    optim.lr 0.01  (no memory for [/data])",
    ):
        assert part in said


def test_a_terminal_has_a_table_of_those_at_work_and_the_best():
    out = io.StringIO()
    make_console(file=out).print(render_table(view()))
    lines = [line.replace("│", " ").split() for line in out.getvalue().splitlines()]
    assert " ".join(lines[0]) == "3 of 8 trials: 1 running, 1 paused, 1 failed; 1:00 elapsed, about 1:00 remaining"
    assert [line[:4] for line in lines[3:]] == [
        ["0", "running", "100", "0.5"],
        ["1", "paused", "15", "0.125"],
        ["2", "failed", "0", "0.01"],
    ]
