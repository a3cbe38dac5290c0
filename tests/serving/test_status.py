"""Counters of replicas and gateways are summed exactly, however long a client is silent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.serving import status
from segray.serving.status import ReportLog, StatusReport

KEY = ("segray_retries", (), "")


@pytest.fixture
def clock(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(status, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("silence", [1.0, 60.0, 3600.0])
def test_a_client_that_returns_is_counted_once(clock, silence):
    reports = ReportLog()
    reports.add(StatusReport("slow", {KEY: 3}))
    reports.add(StatusReport("dead", {KEY: 10}))
    clock[0] += silence
    assert reports.counts()[KEY] == 13
    reports.add(StatusReport("slow", {KEY: 5}))
    assert reports.counts()[KEY] == 15
    clock[0] += 3600.0
    assert reports.counts()[KEY] == 15


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.sampled_from([0.1, 20.0, 700.0]))))
def test_the_sum_is_that_of_the_last_report_of_each_client(events):
    reports, last, now = ReportLog(), {}, [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status, "monotonic", lambda: now[0])
        for client, increment, pause in events:
            last[client] = last.get(client, 0) + increment
            reports.add(StatusReport(client, {KEY: last[client]}))
            now[0] += pause
            assert reports.counts().get(KEY, 0) == sum(last.values())


def test_the_reports_of_dead_clients_do_not_grow(clock, monkeypatch):
    monkeypatch.setattr(status, "MAX_EXPIRED_CLIENTS", 5)
    reports = ReportLog()
    for number in range(20):
        reports.add(StatusReport(f"r{number}", {KEY: 1}))
        clock[0] += 3600.0
        assert reports.counts()[KEY] == number + 1
    assert len(reports._reports) == 0
    assert len(reports._expired) == 5


def test_a_client_counts_as_gone_before_its_report_expires(clock):
    reports = ReportLog()
    reports.add(StatusReport("r1", {KEY: 3}, serving="1"))
    assert [report.client_id for report in reports.current()] == ["r1"]
    clock[0] += 20.0
    assert reports.current() == []
    assert reports.counts()[KEY] == 3
