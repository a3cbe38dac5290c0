"""Who hangs: the rank that came least far, once it has not moved for too long."""

import subprocess
import sys

import psutil
import pytest

from segray.training import heartbeat as module
from segray.training.heartbeat import HeartbeatMonitor, RankStatus


@pytest.fixture
def clock(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])
    return time


def place(rank, step=16, moves=2, signs=7, pid=100, phase="forward", world=9):
    return RankStatus(rank, world, pid + rank, 0.0, "0123456789", step, moves, phase, signs)


def test_the_rank_that_came_least_far_is_the_one_that_hangs(clock):
    pulse = HeartbeatMonitor()
    pulse.report(place(0, moves=3))
    pulse.report(place(1, moves=2))
    pulse.report(place(2, step=17, moves=0))
    clock[0] = 5
    assert pulse.find_stalled(6) == []
    clock[0] = 7
    (found,) = pulse.find_stalled(6)
    assert str(found) == "rank 1 (process 101 on node 01234567), at forward in step 17"
    assert pulse.find_stalled(6) == []  # it is told once


def test_a_rank_that_shows_signs_of_life_does_not_hang(clock):
    pulse = HeartbeatMonitor()
    for second in range(20):
        clock[0] = second
        pulse.report(place(0, signs=second))
        pulse.report(place(1, moves=3))
    assert pulse.find_stalled(6) == []


def test_telling_the_same_again_is_no_sign_of_life(clock):
    pulse = HeartbeatMonitor()
    for second in range(8):
        clock[0] = second
        pulse.report(place(0))
    assert [found.rank for found in pulse.find_stalled(6)] == [0]


def test_ranks_that_stand_at_the_same_place_are_all_named(clock):
    pulse = HeartbeatMonitor()
    for rank in range(2):
        pulse.report(place(rank))
    clock[0] = 7
    assert [found.rank for found in pulse.find_stalled(6)] == [0, 1]


def test_a_rank_that_left_is_not_missed_but_its_successor_is(clock):
    pulse = HeartbeatMonitor()
    pulse.report(place(0))
    pulse.unregister(0, 100)
    clock[0] = 100
    assert pulse.find_stalled(6) == []
    pulse.report(place(0, pid=200))
    pulse.unregister(0, 100)  # a farewell of the first that came late
    clock[0] = 107
    assert [found.pid for found in pulse.find_stalled(6)] == [200]


def test_ranks_there_are_no_more_are_forgotten(clock):
    pulse = HeartbeatMonitor()
    pulse.report(place(0, step=10, world=2))
    pulse.report(place(1, step=10, world=2))
    for second in range(9):
        clock[0] = second
        pulse.report(place(0, step=10 + second, signs=second, pid=200, world=1))
    assert pulse.find_stalled(6) == []


def test_only_the_process_that_told_is_killed_not_one_that_has_its_number():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = psutil.Process(process.pid).create_time()
    assert not module._kill(process.pid, born - 100)
    assert process.poll() is None
    assert module._kill(process.pid, born)
    assert process.wait(10) == -9
    assert not module._kill(process.pid, born)


def test_ranks_hear_that_they_are_to_stop_until_another_run_begins(clock):
    pulse = HeartbeatMonitor()
    assert not pulse.stop()  # nobody is there to do so
    pulse.reset()
    assert not pulse.report(place(0))
    assert pulse.stop()
    assert pulse.report(place(0))
    assert pulse.ping(0, 100)
    pulse.reset()
    assert not pulse.report(place(0))


def test_who_rests_is_there_and_hangs_for_nobody(clock):
    pulse = HeartbeatMonitor()
    pulse.report(place(0))
    pulse.mark_idle(0, 100)
    for second in range(20):
        clock[0] = second
        pulse.ping(0, 100)
    assert pulse.find_stalled(6) == []
    assert pulse.stop()


def test_who_left_or_tells_nothing_is_not_waited_for(clock):
    pulse = HeartbeatMonitor()
    pulse.report(place(0))
    pulse.report(place(1))
    pulse.unregister(0, 100)
    assert pulse.stop()
    pulse.unregister(1, 100)  # a farewell of another process
    assert pulse.stop()
    clock[0] = 11
    assert not pulse.stop()
