"""A trial's part where it takes up what was left: by its former part, or by somebody who was killed."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from segray import config
from segray.cluster.resources import WorkerResources
from segray.tracking.journal import Journal
from segray.training.resume import lock_run
from segray.training.trial_context import TrialContext
from segray.tune.trial_actor import DONE, ERROR, METRICS, STEP, TrialRun, TrialTask, resumable_run

PART = TrialContext("key", 0, WorkerResources(1, "cpu", 1, 1, 0, 0), "sqlite:////nowhere/mlflow.db")


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
    return TrialTask(0, step, config.build({"name": run.name, "results": str(run.parent)}))


def test_a_run_that_came_to_its_end_before_it_was_to_pause_tells_the_rest(run):
    part = TrialRun(task(run, 2), PART, None)
    told = [part.next_result() for _ in range(3)]
    assert [(one[STEP], json.loads(one[METRICS])["val/miou"]) for one in told[:2]] == [(4, 0.4), (6, 0.6)]
    assert told[2][DONE]
    assert told[2][ERROR] == ""


class Bell:
    """What the sweep's pulse answers; its methods are called as those of an actor."""

    def __init__(self, wait_s):
        answers = {"ping": True, "stop_timeout_s": wait_s}
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=lambda *_, answer=answer: ray.put(answer)))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("wait_s", "patience_s"), [(60, 45), (None, float("inf"))])
def test_a_trial_that_hears_the_bell_has_as_long_as_it_says(run, wait_s, patience_s):
    part = TrialRun(task(run, 2), PART, Bell(wait_s))
    part._listen()
    assert part.stop.requested
    assert part.stop.patience_s == patience_s


def test_what_was_left_by_somebody_killed_in_its_first_moment_begins_anew(tmp_path):
    folder = tmp_path / "trial-000"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resumable_run(folder) is None
    assert not folder.exists()
    assert resumable_run(folder) is None


def test_a_run_whose_former_part_still_ends_is_waited_for(run):
    lock = lock_run(run)
    threading.Timer(0.5, lock.close).start()
    began = time.monotonic()
    assert resumable_run(run) == str(run)
    assert time.monotonic() - began > 0.4
