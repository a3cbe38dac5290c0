"""Batches have one key, the order of arrival and a maximum size, and every item gets its own result."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest

from segray.serving.batcher import Batcher


class Slow:
    """Doubles numbers once `go` is set, and records the batches."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def __call__(self, key, items, check):
        self.go.wait(5)
        self.batches.append((key, list(items)))
        if any(item is None for item in items):
            raise ValueError("nothing")
        return [item * 2 for item in items]


def run_batcher(*calls, max_batch_size=4):
    """The results of items (key, item, rank) that arrive while the first one is computed, and the batches."""

    async def run():
        slow = Slow()
        batcher = Batcher(slow, lambda _key: max_batch_size, ThreadPoolExecutor(1))
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(batcher(*call)))
            await asyncio.sleep(0.005)
        slow.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert batcher.num_pending == 0
        assert batcher.batch_started_at is None
        return results, slow.batches

    return asyncio.run(run())


def test_queued_items_are_batched_by_key():
    results, batches = run_batcher(("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5))
    assert batches == [("a", [1]), ("b", [2, 4]), ("a", [3, 5])]
    assert [item.result for item in results] == [2, 4, 6, 8, 10]
    assert [item.batch_size for item in results] == [1, 2, 2, 2, 2]


def test_batches_respect_the_limit_and_the_longest_waiting_key_is_next():
    _, batches = run_batcher(("a", 0), *[("a", number) for number in range(1, 6)], ("b", 9), max_batch_size=2)
    assert batches == [("a", [0]), ("a", [1, 2]), ("a", [3, 4]), ("a", [5]), ("b", [9])]


def test_items_of_a_high_rank_wait_for_those_of_a_low_rank():
    _, batches = run_batcher(("a", 0), ("late", 1, inf), ("b", 2), ("c", 3))
    assert batches == [("a", [0]), ("b", [2]), ("c", [3]), ("late", [1])]


def test_a_failing_item_does_not_fail_its_batch():
    results, batches = run_batcher(("a", 0), ("a", 1), ("a", None), ("a", 3))
    assert isinstance(results[2], ValueError)
    assert [item.result for item in (results[0], results[1], results[3])] == [0, 2, 6]
    assert batches[1:] == [("a", [1, None, 3]), ("a", [1]), ("a", [None]), ("a", [3])]


def test_a_cancelled_item_is_not_computed():
    async def run():
        slow = Slow()
        batcher = Batcher(slow, lambda _key: 4, ThreadPoolExecutor(1))
        first = asyncio.create_task(batcher("a", 0))
        await asyncio.sleep(0.01)
        lost, kept = asyncio.create_task(batcher("a", 1)), asyncio.create_task(batcher("a", 2))
        await asyncio.sleep(0.01)
        lost.cancel()
        await asyncio.sleep(0)
        slow.go.set()
        assert [(await task).result for task in (first, kept)] == [0, 4]
        with pytest.raises(asyncio.CancelledError):
            await lost
        return slow.batches

    assert asyncio.run(run()) == [("a", [0]), ("a", [2])]


def test_the_batcher_restarts_after_a_pause():
    async def run():
        batcher = Batcher(lambda _key, items, _: [item + 1 for item in items], lambda _key: 4, ThreadPoolExecutor(1))
        results = []
        for number in range(3):
            results.append((await batcher("a", number)).result)
            await asyncio.sleep(0.01)
        return results

    assert asyncio.run(run()) == [1, 2, 3]


def test_a_batch_has_the_items_of_the_lowest_rank():
    _, batches = run_batcher(("a", 0), ("a", 1, 9.0), ("b", 2, 5.0), ("a", 3, 1.0), ("a", 4, 2.0), max_batch_size=2)
    assert batches == [("a", [0]), ("a", [3, 4]), ("b", [2]), ("a", [1])]


def test_a_computation_ends_when_its_last_caller_is_gone():
    steps, computing = [], threading.Event()

    def compute(key, items, check):
        computing.set()
        while len(steps) < 500:
            check()
            steps.append(key)
            threading.Event().wait(0.005)
        return items

    async def run():
        batcher = Batcher(compute, lambda _key: 4, ThreadPoolExecutor(1))
        lost = asyncio.create_task(batcher("lost", 1))
        await asyncio.to_thread(computing.wait, 5)
        lost.cancel()
        await asyncio.sleep(0.1)
        num_steps = len(steps)
        await asyncio.sleep(0.1)
        assert len(steps) == num_steps
        steps[:] = [0] * 500
        assert (await batcher("kept", 2)).result == 2

    asyncio.run(run())
