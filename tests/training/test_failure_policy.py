"""Which errors a run survives, and which end it."""

from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from segray.core.errors import DataError, RunStoppedError, TrainingError, cause_summary
from segray.tracking.journal import Journal
from segray.training import fit
from segray.training.failure_policy import FailurePolicy, PreemptedError

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
DEATH = WorkerHealthCheckFailedError("gone", failure=RayActorError())


def decisions(*failures, most=2):
    policy = FailurePolicy(FailureConfig(max_failures=most))
    return [policy.make_decision(WorkerGroupError("failed", dict(enumerate(errors)))) for errors in failures]


def test_dead_workers_are_replaced_up_to_the_limit():
    assert decisions([DEATH], [DEATH], [DEATH]) == [RETRY, RETRY, RAISE]


def test_preemptions_do_not_count():
    stopped = [PreemptedError("a node goes"), PreemptedError("a node goes")]
    assert decisions(*[stopped] * 5, most=0) == [RETRY] * 5


def test_a_stop_request_ends_the_run_even_during_a_preemption():
    assert decisions([PreemptedError("a node goes"), RunStoppedError("stopped at step 3.")]) == [RAISE]


@pytest.mark.parametrize("error", [DataError("row 3 is bad"), TypeError("a bug")])
def test_a_repeated_error_ends_the_run(error):
    ours = isinstance(error, DataError)
    assert decisions([error], [type(error)(*error.args)], most=9) == [RAISE if ours else RETRY, RAISE]


def test_different_errors_are_retried():
    assert decisions([RuntimeError("port 1")], [RuntimeError("port 2")], [RuntimeError("port 3")]) == [
        RETRY,
        RETRY,
        RAISE,
    ]


def test_errors_caused_by_the_death_of_a_worker_are_retried():
    assert decisions([DataError("a shard cannot be read"), DEATH]) == [RETRY]


def test_the_error_of_a_run_is_the_first_line_of_its_worker_error():
    failed = TrainingError("run trial-003 failed: Training failed due to worker errors:\n[Rank 0 Error Snippet]:")
    failed.__cause__ = WorkerGroupError("snippets", {1: RuntimeError("Traceback ...\n  in loss\nValueError: boom\n")})
    assert cause_summary(failed) == "ValueError: boom"
    assert cause_summary(DataError("row 3 is bad:\nmore")) == "row 3 is bad:"


@pytest.mark.parametrize(("upload", "is_kept"), [(None, True), (SimpleNamespace(drain=lambda: None), False)])
def test_the_folder_of_a_failed_trial_is_kept_for_the_uploader_of_the_sweep(tmp_path, upload, is_kept):
    run = tmp_path / "trial-000"
    run.mkdir()
    prepared = SimpleNamespace(folder=run, is_new=True, tracking_uri="sqlite:///gone.db")
    with pytest.raises(DataError), fit._journal_of_run(prepared, upload, [].append):
        raise DataError("row 3 is bad")
    assert run.exists() is is_kept
    if is_kept:
        assert Journal(run).records()[-1]["status"] == "FAILED"
