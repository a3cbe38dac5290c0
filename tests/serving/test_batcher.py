"""Batches: of one kind, in order, no longer than allowed, and each gets its own result."""

import asyncio
import threading

import pytest

from segray.serving.batcher import Batcher


class Slow:
    """Doubles numbers once it is let go; remembers what it was given together."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def __call__(self, kind, items):
        self.go.wait(5)
        self.batches.append((kind, list(items)))
        if any(item is None for item in items):
            raise ValueError("nothing")
        return [item * 2 for item in items]


def ran(*asked, most=4):
    """What came of items (kind, item, is_urgent) that were given while the first was computed, and the batches."""

    async def run():
        slow = Slow()
        batcher = Batcher(slow, lambda _kind: most)
        tasks = []
        for one in asked:
            tasks.append(asyncio.create_task(batcher(*one)))
            await asyncio.sleep(0.005)
        slow.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert batcher.num_pending == 0
        assert batcher.batch_started_at is None
        return found, slow.batches

    return asyncio.run(run())


def test_what_waited_shares_a_batch_with_its_own_kind_alone():
    found, batches = ran(("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5))
    assert batches == [("a", [1]), ("b", [2, 4]), ("a", [3, 5])]
    assert [one.result for one in found] == [2, 4, 6, 8, 10]
    assert [one.batch_size for one in found] == [1, 2, 2, 2, 2]


def test_no_batch_is_longer_than_allowed_and_the_kind_that_waited_longest_is_next():
    _, batches = ran(("a", 0), *[("a", number) for number in range(1, 6)], ("b", 9), most=2)
    assert batches == [("a", [0]), ("a", [1, 2]), ("a", [3, 4]), ("a", [5]), ("b", [9])]


def test_what_is_not_urgent_waits_for_what_is():
    _, batches = ran(("a", 0), ("late", 1, False), ("b", 2), ("c", 3))
    assert batches == [("a", [0]), ("b", [2]), ("c", [3]), ("late", [1])]


def test_one_that_fails_takes_nobody_with_it():
    found, batches = ran(("a", 0), ("a", 1), ("a", None), ("a", 3))
    assert isinstance(found[2], ValueError)
    assert [one.result for one in (found[0], found[1], found[3])] == [0, 2, 6]
    assert batches[1:] == [("a", [1, None, 3]), ("a", [1]), ("a", [None]), ("a", [3])]


def test_who_gave_up_is_not_computed():
    async def run():
        slow = Slow()
        batcher = Batcher(slow, lambda _kind: 4)
        first = asyncio.create_task(batcher("a", 0))
        await asyncio.sleep(0.01)
        lost, kept = asyncio.create_task(batcher("a", 1)), asyncio.create_task(batcher("a", 2))
        await asyncio.sleep(0.01)
        lost.cancel()
        await asyncio.sleep(0)
        slow.go.set()
        assert [(await one).result for one in (first, kept)] == [0, 4]
        with pytest.raises(asyncio.CancelledError):
            await lost
        return slow.batches

    assert asyncio.run(run()) == [("a", [0]), ("a", [2])]


def test_it_works_again_after_a_pause():
    async def run():
        batcher = Batcher(lambda _kind, items: [item + 1 for item in items], lambda _kind: 4)
        found = []
        for number in range(3):
            found.append((await batcher("a", number)).result)
            await asyncio.sleep(0.01)
        return found

    assert asyncio.run(run()) == [1, 2, 3]
