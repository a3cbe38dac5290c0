"""Segments of a trial that resume an existing run, and their reports."""

import threading
import time
from types import SimpleNamespace

import pytest
import ray

from segray import config
from segray.cluster.resources import WorkerResources
from segray.core.errors import OutOfMemoryError, StepOutOfMemoryError
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training.checkpoint_store import checkpoint_folders, list_checkpoints
from segray.training.runs import lock_run
from segray.training.trial_context import TrialContext
from segray.tune import trial_run
from segray.tune.ray_tune import from_tune_result, to_tune_result
from segray.tune.trial_run import TrialReport, TrialRun, TrialTask, copy_checkpoint, resumable_run

CONTEXT = TrialContext("key", 0, WorkerResources(1, "cpu", 1, 1, 0, 0), "sqlite:////nowhere/mlflow.db")


@pytest.fixture
def run(tmp_path):
    """Folder of a finished run with three validations."""
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


def test_a_run_that_finished_before_its_pause_reports_the_remaining_validations(run):
    segment = TrialRun(task(run, 2), CONTEXT, None)
    reports = [segment.next_report() for _ in range(3)]
    assert [(report.step, report.metrics["val/miou"]) for report in reports[:2]] == [(4, 0.4), (6, 0.6)]
    assert [report.is_final for report in reports] == [False, False, True]
    assert reports[2].error == ""


def test_a_task_and_a_report_stay_the_same_through_tune(run):
    sent = TrialTask(3, 2, task(run, 2).config, ("optim.lr",), "/results/trial-001")
    assert TrialTask.from_json(sent.to_json()) == sent
    for report in (TrialReport(1.5, 4, {"val/miou": 0.4}), TrialReport(2.5, error="no memory")):
        assert from_tune_result(to_tune_result(report)) == report
    assert from_tune_result({"done": True}) is None
    assert from_tune_result(None) is None


class StopSignalStub:
    """Stands in for the stop signal of a sweep that ends; its methods are called as those of an actor."""

    def __init__(self, wait_s):
        answers = {"is_stop_requested": True, "stop_timeout_s": wait_s}
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=lambda *_, answer=answer: ray.put(answer)))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("wait_s", "patience_s"), [(60, 45), (None, float("inf"))])
def test_a_trial_stops_within_the_time_that_the_sweep_allows(run, wait_s, patience_s):
    segment = TrialRun(task(run, 2), CONTEXT, StopSignalStub(wait_s))
    segment._check_sweep_stop()
    assert segment.stop.requested
    assert segment.stop.patience_s == patience_s


def test_a_folder_without_a_journal_is_removed(tmp_path):
    folder = tmp_path / "trial-000"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resumable_run(folder) is None
    assert not folder.exists()
    assert resumable_run(folder) is None


@pytest.mark.parametrize(("error", "steps"), [(StepOutOfMemoryError, [1, 2, 4]), (OutOfMemoryError, [1])])
def test_only_a_training_step_that_exhausts_the_memory_leads_to_more_accumulation_steps(run, monkeypatch, error, steps):
    attempts = []

    def fit(settings, **_options):
        attempts.append(settings.train.accumulation_steps)
        raise error("a worker does not have enough memory.")

    monkeypatch.setattr(trial_run, "fit", fit)
    settings = config.build({"name": "new", "results": str(run.parent), "train.batch": 4, "train.workers": 1})
    segment = TrialRun(TrialTask(0, 0, settings), CONTEXT, None)
    report = segment.next_report()
    assert report.error == "a worker does not have enough memory."
    assert attempts == steps


def write_checkpoint(run, step):
    folder = run / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / checkpoint.WEIGHTS).write_bytes(b"w" * step)
    metrics = {"val/miou": step / 10}
    meta = checkpoint.Meta(
        step=step, metrics=metrics, dataset_digest="d", versions={}, files={checkpoint.WEIGHTS: step}
    )
    (folder / checkpoint.META).write_text(meta.model_dump_json())
    return folder


def test_a_copy_replaces_also_a_damaged_checkpoint_of_the_same_step(run, tmp_path):
    donor = tmp_path / "trial-001"
    write_checkpoint(donor, 4)
    (write_checkpoint(run, 4) / checkpoint.META).unlink()
    write_checkpoint(run, 2)
    copy_checkpoint(donor, run)
    assert [info.step for info in list_checkpoints(run)] == [4]
    assert [path.name for path in checkpoint_folders(run)] == ["step-000004"]


def test_a_copy_has_no_score_of_its_own_trial(run, tmp_path):
    donor = tmp_path / "trial-001"
    write_checkpoint(donor, 4)
    copy_checkpoint(donor, run)
    assert [(info.step, info.score) for info in list_checkpoints(donor)] == [(4, 0.4)]
    assert [(info.step, info.score) for info in list_checkpoints(run)] == [(4, None)]


def test_a_copy_waits_for_a_checkpoint_while_the_donor_replaces_its_only_one(run, tmp_path, monkeypatch):
    donor = tmp_path / "trial-001"
    (write_checkpoint(donor, 2) / checkpoint.META).unlink()  # the donor removes it now
    monkeypatch.setattr(trial_run, "sleep", lambda _seconds: write_checkpoint(donor, 4))
    copy_checkpoint(donor, run)
    assert [info.step for info in list_checkpoints(run)] == [4]


def test_resuming_waits_for_the_lock_of_the_previous_segment(run):
    lock = lock_run(run)
    threading.Timer(0.5, lock.close).start()
    began = time.monotonic()
    assert resumable_run(run) == str(run)
    assert time.monotonic() - began > 0.4
