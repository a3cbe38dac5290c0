"""The two sides of the inference and evaluation benchmarks find the same, in every mode."""

import pytest

from benchmarks import evaluation, inference
from benchmarks.inference import MODES, InferenceCase, build_candidate
from benchmarks.peers import OURS, TRANSFORMERS
from segray import config
from segray.core.errors import DataError


@pytest.mark.parametrize(
    "mode", [mode if mode != "scales" else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
)
def test_both_find_the_same(mode):
    case = InferenceCase("b0", 128, 192, 2, mode, 64, 7, "cpu", "float32")
    ours, theirs = (build_candidate(name, case)() for name in (OURS, TRANSFORMERS))
    assert ours.shape == theirs.shape == (2, 128, 192)
    # Ours blends windows, and resizes scaled images, at other places: near ties of random weights may differ.
    assert (ours != theirs).float().mean() < {"whole": 1e-4, "flip": 1e-3}.get(mode, 0.15)


@pytest.mark.slow
def test_a_report_has_every_measure_of_every_case():
    said = []
    found = inference.run_benchmark([InferenceCase("b0", 64, 64, 2, "whole", 64, 3, "cpu", "float32")], 3, said.append)
    names = [f"whole, batch 2: {what}" for what in ("p50", "p95", "images", "memory")]
    assert [row.measure for row in found.rows] == names
    assert all(row.ours > 0 and row.theirs > 0 and row.ratio > 0 for row in found.rows)
    by_name = {row.measure: row for row in found.rows}
    assert by_name["whole, batch 2: images"].ours == pytest.approx(2 / by_name["whole, batch 2: p50"].ours)
    assert by_name["whole, batch 2: p95"].ours >= by_name["whole, batch 2: p50"].ours


@pytest.mark.slow
def test_the_plain_loop_counts_what_our_evaluation_counts(streets):
    found = evaluation.run_benchmark(str(streets), "val", config.build({}), 1, lambda _: None)
    assert found.case["images"] == 7
    assert float(found.case["counted_elsewhere"]) < 1e-4
    (row,) = found.rows
    assert row.unit == "s"


def test_data_in_a_store_is_refused_by_the_plain_loop():
    with pytest.raises(DataError, match="the peer's loop reads files"):
        evaluation.require_local("s3://bucket/data")
