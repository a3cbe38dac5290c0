"""What a person and a log see of a run."""

import io

import numpy as np
from rich.console import Console

from segray.cli.parser import make_console
from segray.cli.progress import TrainingProgress, format_duration
from segray.cli.tables import print_paths, print_scores
from segray.evaluation.metrics.scores import scores_from_confusion
from segray.tracking.journal import Journal

VALUES = {"train/loss": 0.5, "train/lr": 1e-3, "train/images_per_s": 42.0, "train/data_wait": 0.1}


def test_a_log_shows_every_validation_and_the_time_left(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=200)
    journal = Journal(tmp_path)
    with TrainingProgress(console, 40) as progress:
        progress.follow(tmp_path)
        for step in range(10, 41, 10):
            more = {"val/miou": 0.25, "val/aacc": 0.75} if step % 20 == 0 else {}
            journal.write("metrics", step=step, values=VALUES | more)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/40", "20/40", "40/40"]
    assert "loss 0.5000  lr 1.00e-03  42.0 img/s  wait 10%  remaining" in lines[0]
    assert lines[1].endswith("val mIoU 0.2500  aAcc 0.7500")


def test_brackets_are_shown_as_they_are(tmp_path):
    """In a terminal's bar and in a log: what a run says, and names of classes."""
    out = io.StringIO()
    journal = Journal(tmp_path)
    with TrainingProgress(make_console(file=out), 40) as progress:
        progress.follow(tmp_path)
        journal.write("event", text="[enforce fail] at [/data]")
    print_scores(make_console(file=out), "[val]", scores_from_confusion(np.diag([5, 0]), ["[car]", "[bold]"]))
    for part in ("[enforce fail] at [/data]", "[val]", "[car]", "[bold]"):
        assert part in out.getvalue()


def test_durations():
    assert [format_duration(seconds) for seconds in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


def test_a_table_names_absent_classes_and_places_are_never_cut():
    out = io.StringIO()
    console = Console(file=out, width=60)
    counts = np.array([[4, 4, 0], [0, 0, 0], [0, 0, 0]])
    print_scores(console, "validation", scores_from_confusion(counts, ["road", "car", "ghost"]))
    print_paths(console, {"run": "/a/very/long/path/" + "x" * 80, "next": "python"})
    shown = out.getvalue()
    assert "mIoU 0.2500   mAcc 0.5000   aAcc 0.5000" in shown
    assert "classes in neither ground truth nor predictions: ghost" in shown
    assert "classes predicted without ground truth, IoU 0: car" in shown
    assert "/a/very/long/path/" + "x" * 80 + "\n" in shown


def test_a_metric_that_is_null_is_not_shown(tmp_path):
    values = {"train/loss": None, "val/miou": 0.5}
    Journal(tmp_path).write("metrics", step=1, values=values)
    output = io.StringIO()
    with TrainingProgress(Console(file=output), 10) as progress:
        progress.follow(tmp_path)
    assert "loss nan" in output.getvalue()
