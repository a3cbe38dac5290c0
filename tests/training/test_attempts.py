"""A run whose controller dies goes on, within the same number of failures as after the death of a worker."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from segray import config
from segray.core.errors import ClusterError, DataError, OutOfMemoryError, TrainingError
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training import checkpoint_store
from segray.training import fit as fit_module
from segray.training.attempts import FailureBudget, run_attempts
from segray.training.failure_policy import PreemptedError
from segray.training.fit import fit
from segray.training.reporting import JournalCallback

HINT = "resume it with --resume results/run"


def prepared_run(folder, is_new=False):
    return SimpleNamespace(folder=folder, is_new=is_new, config=config.build({}))


@pytest.mark.parametrize("error", [TrainingError, OutOfMemoryError, DataError, ClusterError])
def test_every_failure_of_a_run_names_the_option_that_resumes_it(tmp_path, error):
    failure = fit_module._with_resume_hint(error("row 5 cannot be decoded."), prepared_run(tmp_path))
    assert type(failure) is error
    assert str(failure) == f"row 5 cannot be decoded; resume it with --resume {tmp_path}."
    assert fit_module._with_resume_hint(failure, prepared_run(tmp_path)) is failure


def test_a_failure_whose_run_folder_is_removed_does_not_name_it(tmp_path):
    failure = DataError("row 5 cannot be decoded.")
    assert fit_module._with_resume_hint(failure, prepared_run(tmp_path, is_new=True)) is failure


def run(attempt, journal, most, stopped=False):
    losses = []
    run_attempts(attempt, FailureBudget(journal, most), lambda: stopped, losses.append, HINT)
    return losses


def attempts_that_lose_workers(folder, *failures):
    """Each attempt loses some workers and then its controller; the last one ends well. Returns it, and its calls."""
    calls, callback = [], JournalCallback(str(folder))

    def attempt(max_failures):
        calls.append(max_failures)
        if len(calls) > len(failures):
            return
        for _ in range(failures[len(calls) - 1]):
            callback.after_exception(None, {0: RuntimeError("gone"), 1: RuntimeError("gone as well")})
        raise RayActorError

    return attempt, calls


def test_deaths_of_workers_and_of_the_controller_count_together(tmp_path):
    attempt, calls = attempts_that_lose_workers(tmp_path, 1, 0, 2)
    journal = Journal(tmp_path)
    journal.write("event", text="a failure of an earlier start", is_failure=True)
    assert run(attempt, journal, 7) == [5, 4, 1]
    assert calls == [7, 5, 4, 1]
    texts = [record["text"] for record in journal.records()]
    assert texts.count("the controller of the run died.") == 3


def test_a_run_without_failures_left_ends_and_names_the_command_that_resumes_it(tmp_path):
    attempt, calls = attempts_that_lose_workers(tmp_path, 1, 0)
    with pytest.raises(TrainingError, match=rf"controller of the run died, and train.max_failures .*; {HINT}\.$"):
        run(attempt, Journal(tmp_path), 2)
    assert calls == [2, 0]


def test_preemptions_do_not_count(tmp_path):
    callback, journal = JournalCallback(str(tmp_path)), Journal(tmp_path)
    budget = FailureBudget(journal, 3)
    callback.after_exception(None, {0: PreemptedError("a node goes"), 1: PreemptedError("a node goes")})
    assert budget.remaining() == 3


def test_a_requested_stop_and_an_error_inside_the_controller_are_no_loss(tmp_path):
    def ends(_max_failures):
        raise RayActorError

    def fails(_max_failures):
        raise RayTaskError("run", "text", RayActorError()).as_instanceof_cause()

    with pytest.raises(RayActorError):
        run(ends, Journal(tmp_path), 3, stopped=True)
    with pytest.raises(RayTaskError):
        run(fails, Journal(tmp_path), 3)
    assert Journal(tmp_path).records() == []


def kill_controller(steps, journal, until):
    """Kills the process of the controller, a child of this cluster, once the run has made some steps."""
    while time.monotonic() < until:
        if journal.last_step() >= steps:
            (victim,) = [
                process
                for process in psutil.Process().children(recursive=True)
                if "TrainController" in "".join(process.cmdline()[:1])
            ]
            os.kill(victim.pid, signal.SIGKILL)
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_survives_the_sigkill_of_its_controller(ray_cluster, tiny):
    settings = config.build(
        config.flatten(tiny) | {"train.steps": 16, "train.checkpoint_every": 2, "train.val_every": 16, "data.crop": 32}
    )
    said = []

    def watch(folder):
        arguments = (4, Journal(folder), time.monotonic() + 120)
        threading.Thread(target=kill_controller, args=arguments, daemon=True).start()

    result = fit(settings, say=said.append, watch=watch)
    assert any("controller of the run died; continuing from the last checkpoint (2 failures" in line for line in said)
    records = Journal(Path(result.folder)).records()
    assert [record["step"] for record in records if record["kind"] == "metrics"] == list(range(1, 17))
    assert [record["text"] for record in records if record["kind"] == "event"] == ["the controller of the run died."]
    assert checkpoint.load_meta(checkpoint_store.list_checkpoints(Path(result.folder))[-1].folder).step == 16
    assert ray.available_resources()["CPU"] == 2  # the lost controller's workers hold none
