"""A trial's part where it takes up what was left: by its former part, or by somebody who was killed."""

import json
import threading
import time
from dataclasses import replace

import pytest

from segray import config
from segray.capacity import Placement
from segray.tracking.journal import Journal
from segray.train.part import Part
from segray.train.resume import hold
from segray.tune.running import DONE, FAILED, FOUND, STEP, Run, Task, begun

PART = Part("key", 0, Placement(1, "cpu", 1, 1, 0, 0), "sqlite:////nowhere/mlflow.db")


@pytest.fixture
def run(tmp_path):
    """The folder of a run that made three validations and came to its end."""
    folder = tmp_path / "trial-000"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    journal = Journal(folder)
    journal.write("run", key="k")
    for step in (2, 4, 6):
        journal.write("metrics", step=step - 1, values={"train/loss": 1.0})
        journal.write("metrics", step=step, values={"val/miou": step / 10})
    journal.write("end", status="FINISHED")
    return folder


def task(run, step):
    return Task(0, step, config.build({"name": run.name, "results": str(run.parent)}))


def test_a_run_that_came_to_its_end_before_it_was_to_pause_tells_the_rest(run):
    part = Run(task(run, 2), PART, None)
    told = [part.next() for _ in range(3)]
    assert [(one[STEP], json.loads(one[FOUND])["val/miou"]) for one in told[:2]] == [(4, 0.4), (6, 0.6)]
    assert told[2][DONE]
    assert told[2][FAILED] == ""


def test_a_trial_has_as_long_to_stop_as_the_job_of_its_sweep(run):
    assert Run(task(run, 2), replace(PART, wait_s=60), None).stop.patience_s < 60


def test_what_was_left_by_somebody_killed_in_its_first_moment_begins_anew(tmp_path):
    folder = tmp_path / "trial-000"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert begun(folder) is None
    assert not folder.exists()
    assert begun(folder) is None


def test_a_run_whose_former_part_still_ends_is_waited_for(run):
    lock = hold(run)
    threading.Timer(0.5, lock.close).start()
    began = time.monotonic()
    assert begun(run) == str(run)
    assert time.monotonic() - began > 0.4
