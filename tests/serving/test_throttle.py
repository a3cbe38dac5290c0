"""Throttled work gets what urgent work leaves, and at least its share."""

import asyncio
import threading
import time

import pytest

from segray.serving.batcher import AbandonedError
from segray.serving.lane import CodecThreads
from segray.serving.throttle import MIN_SHARE, Throttle


def nothing():
    pass


def seconds_of_steps(throttle, count=3, step_s=0.02):
    begun = time.perf_counter()
    for _ in range(count):
        throttle.start(nothing)
        time.sleep(step_s)
        throttle.stop()
    return time.perf_counter() - begun


def test_work_gets_at_least_its_share_while_urgent_work_waits_and_all_time_otherwise():
    is_idle = threading.Event()
    busy = seconds_of_steps(Throttle(is_idle))
    is_idle.set()
    idle = seconds_of_steps(Throttle(is_idle))
    assert 0.02 + 2 * 0.02 / MIN_SHARE <= busy < 0.1 + 4 * 0.02 / MIN_SHARE + 4 * idle
    assert idle < busy / 2


def test_work_continues_as_soon_as_urgent_work_is_done():
    is_idle = threading.Event()
    throttle = Throttle(is_idle)
    throttle.start(nothing)
    time.sleep(1.0)
    throttle.stop()
    threading.Timer(0.1, is_idle.set).start()
    begun = time.perf_counter()
    throttle.start(nothing)
    assert time.perf_counter() - begun < 1 / MIN_SHARE - 2


def test_work_that_waits_ends_if_it_is_no_longer_needed():
    throttle = Throttle(threading.Event())
    throttle.start(nothing)
    time.sleep(0.1)
    throttle.stop()

    def check():
        raise AbandonedError

    with pytest.raises(AbandonedError):
        throttle.start(check)


def test_a_call_whose_caller_is_cancelled_ends_at_its_next_check():
    ended = threading.Event()

    def endless(check):
        try:
            while True:
                time.sleep(0.01)
                check()
        except AbandonedError:
            ended.set()
            raise

    async def run():
        threads = CodecThreads("test", 1)
        call = asyncio.create_task(threads.run(endless))
        await asyncio.sleep(0.1)
        assert not ended.is_set()
        call.cancel()
        assert await threads.run(lambda _: "next") == "next"

    asyncio.run(asyncio.wait_for(run(), 30))
    assert ended.is_set()
