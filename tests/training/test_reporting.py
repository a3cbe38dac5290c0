"""Aggregation of the reports of all ranks into journal records."""

import json

import pytest

from segray.tracking.journal import Journal
from segray.training.failure_policy import PreemptedError
from segray.training.reporting import JournalCallback, aggregate_reports


def report(loss, images, elapsed, wait, **more):
    meter = {"loss": loss, "images": images, "elapsed_s": elapsed, "wait_s": wait, "grad_norm": 0.5, "skipped": 0}
    system = {"cpu_percent": 50 * images, "memory_gib": images}
    return {"lr": 1e-3, "meter": meter, "system": system, "bad_rows": 0, **more}


REPORTS = [report(1.0, 6.0, 2.0, 0.5), report(2.0, 4.0, 4.0, 0.1)]


def test_losses_are_averaged_images_summed_and_the_slowest_rank_sets_the_time():
    assert aggregate_reports(REPORTS) == {
        "train/loss": 1.5,
        "train/grad_norm": 0.5,
        "train/lr": 1e-3,
        "train/images_per_s": pytest.approx(2.5),
        "train/data_wait": pytest.approx(0.125),
        "system/workers": 2,
        "system/cpu_percent": 250,
        "system/memory_gib": 6,
    }


def test_skipped_rows_are_summed_over_the_ranks():
    found = aggregate_reports(
        [
            report(1.0, 6.0, 2.0, 0.5, bad_rows=2),
            report(2.0, 4.0, 4.0, 0.1, bad_rows=1),
        ]
    )
    assert found["train/bad_rows"] == 3


def recent(*steps):
    """What every rank reports: the last two steps' metrics."""
    return [{"step": steps[-1][0], "recent": [(step, {"train/loss": loss}) for step, loss in steps]}]


def written(folder):
    return [(record["step"], record["values"]["train/loss"]) for record in Journal(folder).records()]


def test_the_callback_appends_a_record(tmp_path):
    JournalCallback(str(tmp_path)).after_report(None, recent((20, 1.5)), None)
    record = json.loads((tmp_path / "journal.jsonl").read_text())
    assert (record["kind"], record["step"], record["values"]) == ("metrics", 20, {"train/loss": 1.5})


def test_the_latest_checkpoint_and_the_preview_of_a_step_are_recorded_once(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "step-000040.png").write_bytes(b"png")
    callback = JournalCallback(str(tmp_path))
    for step, newest in ((20, None), (40, "/run/step-000020"), (60, "/run/step-000020"), (80, "/run/step-000060")):
        callback.after_report(None, [recent((step, 1.0))[0] | {"newest": newest}], None)
    told = [record for record in Journal(tmp_path).records() if record["kind"] != "metrics"]
    assert [record.get("value", record.get("file")) for record in told] == [
        "predictions/step-000040.png",
        "/run/step-000020",
        "/run/step-000060",
    ]


def test_a_repeated_step_keeps_its_first_record(tmp_path):
    """By one controller after its workers were replaced, and by another after its driver was."""
    for callback in (JournalCallback(str(tmp_path)), JournalCallback(str(tmp_path))):
        for step, loss in ((20, 1.0), (40, 2.0), (20, 9.0), (40, 9.0), (60, 3.0)):
            callback.after_report(None, recent((step, loss)), None)
    assert written(tmp_path) == [(20, 1.0), (40, 2.0), (60, 3.0)]


def test_a_report_lost_with_its_controller_is_written_by_the_next(tmp_path):
    JournalCallback(str(tmp_path)).after_report(None, recent((20, 1.0)), None)
    after = JournalCallback(str(tmp_path))
    after.after_report(None, recent((20, 1.0), (40, 2.0)), None)
    after.after_report(None, recent((40, 2.0), (60, 3.0)), None)
    assert written(tmp_path) == [(20, 1.0), (40, 2.0), (60, 3.0)]


def test_skipped_steps_are_counted_and_a_mean_over_no_steps_is_omitted():
    found = aggregate_reports([report(float("nan"), 6.0, 2.0, 0.5)])
    assert "train/loss" not in found
    spoilt = report(1.0, 6.0, 2.0, 0.5)
    spoilt["meter"]["skipped"] = 2
    assert aggregate_reports([spoilt])["train/skipped"] == 2
    assert "train/skipped" not in aggregate_reports(REPORTS)


def test_worker_errors_are_recorded_in_one_line_each(tmp_path):
    callback = JournalCallback(str(tmp_path))
    callback.after_exception(None, {1: ValueError("one\ntwo"), 0: RuntimeError("gone")})
    callback.after_exception(None, {0: PreemptedError("a node goes"), 1: PreemptedError("a node goes")})
    texts = [record["text"] for record in Journal(tmp_path).records()]
    assert texts == ["rank 0 ended: gone", "rank 1 ended: one", "a node goes"]


def test_records_rejected_by_a_full_disk_are_written_later(tmp_path, monkeypatch):
    callback = JournalCallback(str(tmp_path))
    callback.after_report(None, recent((20, 1.0)), None)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
        callback.after_report(None, recent((40, 2.0)), None)
    callback.after_report(None, recent((60, 3.0)), None)
    assert written(tmp_path) == [(20, 1.0), (40, 2.0), (60, 3.0)]
