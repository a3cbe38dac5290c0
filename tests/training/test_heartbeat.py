"""Detection of stalled ranks, and stop requests in the replies to heartbeats."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from ray.exceptions import RayError

from segray.training import heartbeat as module
from segray.training.heartbeat import HeartbeatMonitor, RankStatus


@pytest.fixture
def clock(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])
    return time


def status(rank, step=16, phase_index=2, num_beats=7, pid=100, phase="forward", world=9):
    return RankStatus(rank, world, pid + rank, 0.0, "0123456789", step, phase_index, phase, num_beats)


def test_only_the_rank_with_the_least_progress_is_stalled(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0, phase_index=3))
    monitor.report(status(1, phase_index=2))
    monitor.report(status(2, step=17, phase_index=0))
    clock[0] = 5
    assert monitor.find_stalled(6) == []
    clock[0] = 7
    (stalled,) = monitor.find_stalled(6)
    assert str(stalled) == "rank 1 (process 101 on node 01234567, step 17, phase forward)"
    assert monitor.find_stalled(6) == []  # reported only once


def test_a_rank_that_sends_beats_is_not_stalled(clock):
    monitor = HeartbeatMonitor()
    for second in range(20):
        clock[0] = second
        monitor.report(status(0, num_beats=second))
        monitor.report(status(1, phase_index=3))
    assert monitor.find_stalled(6) == []


def test_a_repeated_status_is_not_progress(clock):
    monitor = HeartbeatMonitor()
    for second in range(8):
        clock[0] = second
        monitor.report(status(0))
    assert [stalled.rank for stalled in monitor.find_stalled(6)] == [0]


def test_all_ranks_with_equal_progress_are_returned(clock):
    monitor = HeartbeatMonitor()
    for rank in range(2):
        monitor.report(status(rank))
    clock[0] = 7
    assert [stalled.rank for stalled in monitor.find_stalled(6)] == [0, 1]


def test_an_unregistered_rank_is_not_stalled_but_its_successor_may_be(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0))
    monitor.unregister(0, 100)
    clock[0] = 100
    assert monitor.find_stalled(6) == []
    monitor.report(status(0, pid=200))
    monitor.unregister(0, 100)  # a late message of the first process
    clock[0] = 107
    assert [stalled.pid for stalled in monitor.find_stalled(6)] == [200]


def test_ranks_of_an_earlier_larger_group_are_removed(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0, step=10, world=2))
    monitor.report(status(1, step=10, world=2))
    for second in range(9):
        clock[0] = second
        monitor.report(status(0, step=10 + second, num_beats=second, pid=200, world=1))
    assert monitor.find_stalled(6) == []


def test_a_process_that_reuses_the_process_id_is_not_killed():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start_time = psutil.Process(process.pid).create_time()
    assert not module._kill_process(process.pid, start_time - 100)
    assert process.poll() is None
    assert module._kill_process(process.pid, start_time)
    assert process.wait(10) == -9
    assert not module._kill_process(process.pid, start_time)


def test_replies_contain_the_stop_request_until_the_monitor_is_reset(clock):
    monitor = HeartbeatMonitor()
    monitor.request_stop(60)
    assert not monitor.has_live_ranks()
    assert monitor.is_stop_requested()
    assert monitor.stop_timeout_s() == 60
    monitor.reset()
    assert not monitor.is_stop_requested()
    assert monitor.stop_timeout_s() is None
    assert not monitor.report(status(0))
    monitor.request_stop()
    assert monitor.has_live_ranks()
    assert monitor.report(status(0))
    assert monitor.ping(0, 100)
    monitor.reset()
    assert not monitor.report(status(0))


def test_an_idle_rank_is_alive_and_not_stalled(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0))
    monitor.mark_idle(0, 100)
    for second in range(20):
        clock[0] = second
        monitor.ping(0, 100)
    assert monitor.find_stalled(6) == []
    assert monitor.has_live_ranks()


def test_unregistered_and_silent_ranks_are_not_alive(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0))
    monitor.report(status(1))
    monitor.unregister(0, 100)
    assert monitor.has_live_ranks()
    monitor.unregister(1, 100)  # a message of another process
    assert monitor.has_live_ranks()
    clock[0] = 11
    assert not monitor.has_live_ranks()


class MonitorStub:
    """Stands in for the actor of a monitor: its methods are called as those of an actor."""

    def __init__(self, monitor):
        for name in ("processes", "has_live_ranks"):
            method = getattr(monitor, name)
            setattr(self, name, SimpleNamespace(remote=method))


@pytest.fixture
def kills(monkeypatch):
    """Ranks that `kill_ranks` kills; the node of rank 1 is lost. Nothing waits."""
    killed = []

    def kill(status):
        if status.rank == 1:
            raise RayError("the node is lost")
        killed.append(status.rank)

    monkeypatch.setattr(module, "_kill_rank", kill)
    monkeypatch.setattr(module.ray, "get", lambda reply, timeout: reply)
    return killed


def test_a_lost_node_does_not_prevent_the_killing_of_the_other_ranks_and_the_wait(clock, kills, monkeypatch):
    monitor = HeartbeatMonitor()
    for rank in range(4):
        monitor.report(status(rank))
    monitor.mark_idle(3, 103)  # it writes its last checkpoint
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        clock[0] += 5

    monkeypatch.setattr(module, "sleep", sleep)
    module.kill_ranks(MonitorStub(monitor))
    assert kills == [0, 2, 3]
    assert len(pauses) == 2  # the ranks are silent after 10 s


def test_a_finished_rank_is_not_killed(kills, clock):
    monitor = HeartbeatMonitor()
    for rank in (0, 2):
        monitor.report(status(rank))
    monitor.mark_idle(0, 100)
    monitor.unregister(0, 100)
    assert [rank.rank for rank in monitor.processes()] == [2]


def test_a_stalled_rank_remains_known_until_it_is_silent(clock):
    monitor = HeartbeatMonitor()
    monitor.report(status(0))
    clock[0] = 7
    assert monitor.find_stalled(6)
    assert [rank.rank for rank in monitor.processes()] == [0]
