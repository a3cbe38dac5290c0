"""Telemetry that fails is one warning, and never the end of a run."""

import logging

import pytest
import torch

from segray.core import logging as core_logging
from segray.core.logging import warn_on_error
from segray.tracking.journal import Journal
from segray.training import worker_state
from segray.training.reporting import JournalCallback, aggregate_reports
from segray.training.worker_state import SystemUsage
from tests.training.test_reporting import recent, report, written


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of segray from now on, as in a new process."""
    monkeypatch.setattr(core_logging, "_warned_tasks", set())
    records, logger, handler = [], logging.getLogger("segray"), logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_an_optional_task_that_fails_is_one_warning(warnings):
    for _ in range(3):
        with warn_on_error("the weather cannot be measured"):
            raise RuntimeError("no window")
    assert [record.getMessage() for record in warnings] == [
        "the weather cannot be measured (RuntimeError: no window); the run continues without it."
    ]
    with pytest.raises(KeyboardInterrupt), warn_on_error("x"):  # a stop is no failure of the task
        raise KeyboardInterrupt


def test_a_gpu_that_tells_nothing_of_itself_costs_only_its_own_values(warnings, monkeypatch):
    """This machine has no driver, so that torch's own calls fail here as they do on a node without one."""
    monkeypatch.setattr(worker_state, "NVML_INSTALLED", True)
    usage = SystemUsage(torch.device("cuda"))
    for _ in range(2):
        assert set(usage()) == {"cpu_percent", "memory_gib"}
    assert sorted(record.getMessage().partition(" (")[0] for record in warnings) == [
        "the memory of the GPU cannot be measured",
        "the utilisation of the GPU cannot be measured",
    ]


def test_a_rank_that_cannot_measure_leaves_the_values_of_the_others():
    reports = [report(1.0, 6.0, 2.0, 0.5), report(2.0, 4.0, 4.0, 0.1)]
    reports[1]["system"] = {"memory_gib": 9, "gpu_percent": 80.0}
    values = aggregate_reports(reports)
    assert values["system/memory_gib"] == 9
    assert values["system/cpu_percent"] == reports[0]["system"]["cpu_percent"]
    assert values["system/gpu_percent"] == 80


def test_a_journal_that_cannot_be_read_for_a_while_loses_no_metrics(tmp_path, warnings):
    journal = Journal(tmp_path)
    journal.path.mkdir()  # reading and writing fail
    callback = JournalCallback(str(tmp_path))
    callback.after_report(None, recent((20, 1.5)), None)
    callback.after_report(None, recent((20, 1.5), (40, 1.25)), None)
    assert len([record for record in warnings if "metrics cannot be written" in record.getMessage()]) == 1
    journal.path.rmdir()
    callback.after_report(None, recent((40, 1.25), (60, 1.0)), None)
    assert written(tmp_path) == [(20, 1.5), (40, 1.25), (60, 1.0)]
