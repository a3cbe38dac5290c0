"""One line of figures from the reports of all ranks."""

import json

import pytest

from segray.train.report import JournalReports, joined


def report(loss, images, elapsed, wait, **more):
    meter = {"loss": loss, "images": images, "elapsed_s": elapsed, "wait_s": wait}
    return {"step": 20, "lr": 1e-3, "meter": meter, "bad_rows": {"train": 0}, **more}


REPORTS = [report(1.0, 6.0, 2.0, 0.5, **{"val/miou": 0.25}), report(2.0, 4.0, 4.0, 0.1, **{"val/miou": 0.25})]


def test_losses_are_averaged_images_summed_and_the_slowest_rank_sets_the_time():
    assert joined(REPORTS) == {
        "train/loss": 1.5,
        "train/lr": 1e-3,
        "train/images_per_s": pytest.approx(2.5),
        "train/data_wait": pytest.approx(0.125),
        "val/miou": 0.25,
    }


def test_rows_left_out_are_summed_over_the_ranks():
    found = joined(
        [
            report(1.0, 6.0, 2.0, 0.5, bad_rows={"train": 2, "val": 0}),
            report(2.0, 4.0, 4.0, 0.1, bad_rows={"train": 1, "val": 0}),
        ]
    )
    assert found["train/bad_rows"] == 3
    assert "val/bad_rows" not in found


def test_the_callback_appends_a_record(tmp_path):
    JournalReports(str(tmp_path)).after_report(None, REPORTS, None)
    record = json.loads((tmp_path / "journal.jsonl").read_text())
    assert (record["kind"], record["step"], record["values"]["train/loss"]) == ("metrics", 20, 1.5)
