"""The search for the largest batch: the answer of trying all, and a real process that runs out of memory."""

import pytest
import torch

from benchmarks import max_batch
from segray import config
from segray.core.errors import ModelError

MIB = 2**20


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9, 100, 511])
def test_the_search_finds_what_trying_all_finds_within_a_sixteenth(limit):
    tried = []

    def fits(images):
        tried.append(images)
        return images <= limit

    found = max_batch.smallest_failing(fits, 512)
    assert limit < found <= limit + max(1, limit // 16)
    assert found in tried
    assert max(images for images in tried if images <= limit) + max(1, limit // 16) >= found
    assert len(tried) == len(set(tried)) < 20


@pytest.mark.parametrize("most", [1, 5, 64])
def test_no_more_than_the_most_is_tried(most):
    tried = []
    assert max_batch.smallest_failing(lambda images: tried.append(images) or True, most) is None
    assert tried[-1] == max(tried) == most


def searched(monkeypatch, budget, most):
    monkeypatch.setattr(max_batch, "_budget", lambda _device: budget)
    settings = config.build({"data.crop": 256, "train.batch": 64, "optim.warmup_steps": 0})
    return max_batch.run_benchmark(settings, 4, torch.device("cpu"), most, lambda _line: None)


@pytest.mark.slow
def test_a_process_that_runs_out_of_memory_is_a_batch_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(max_batch, "smallest_failing", lambda fits, most: None if fits(1) and fits(most) else most)
    report = searched(monkeypatch, 1024 * MIB, most=64)
    assert (report.largest, report.too_many) == (1, 64)
    assert 4 * 3_700_000 < report.peaks[1] < 1024 * MIB  # at least the parameters, as float32


def test_where_nothing_fits_the_error_says_what_to_change(monkeypatch):
    with pytest.raises(ModelError, match=r"a batch of one 256x256 image does not fit .*checkpointing"):
        searched(monkeypatch, 8 * MIB, most=64)
