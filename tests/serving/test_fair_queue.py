"""Slots and budgets are shared fairly: one client does not keep others waiting."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.serving.budget import SharedBudget
from segray.serving.fair_queue import FairQueue


def serve(requests, num_slots=1):
    """The order in which requests (client, cost) get a slot that all ask for at once."""

    async def run():
        queue, order = FairQueue(num_slots), []

        async def work(number, client, cost):
            async with queue.slot(client, cost):
                order.append((client, number))
                await asyncio.sleep(0)

        await asyncio.gather(*(work(number, *request) for number, request in enumerate(requests)))
        assert queue._num_free == num_slots
        assert queue._next_rank == {}
        return order

    return asyncio.run(run())


def test_a_client_with_one_request_waits_for_one_request_of_a_greedy_client():
    order = serve([("greedy", 1.0)] * 20 + [("modest", 1.0)])
    assert [client for client, _ in order].index("modest") <= 1


def test_a_client_with_cheap_requests_is_not_behind_one_with_expensive_requests():
    order = [client for client, _ in serve([("costly", 10.0)] * 5 + [("cheap", 1.0)] * 10)]
    assert order.index("costly", 1) >= 10


REQUESTS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10.0)), max_size=30)


@given(REQUESTS, st.integers(1, 4))
def test_every_request_gets_a_slot_and_those_of_a_client_keep_their_order(requests, num_slots):
    order = serve(requests, num_slots)
    assert sorted(number for _, number in order) == list(range(len(requests)))
    for client in "abc":
        numbers = [number for name, number in order if name == client]
        assert numbers == sorted(numbers)


@given(REQUESTS)
def test_waiting_clients_receive_equal_work_up_to_one_request(requests):
    """While two clients wait, the difference of their work is at most one request of each."""
    costs = dict(enumerate(cost for _, cost in requests))
    remaining = [client for client, _ in requests]
    work = dict.fromkeys("abc", 0.0)
    order = serve(requests)
    for client, _ in order[:1]:
        remaining.remove(client)  # the first request does not wait
    for client, number in order[1:]:
        waiting = set(remaining)
        work[client] += costs[number]
        remaining.remove(client)
        for other in waiting & set(remaining):
            assert work[client] - work[other] <= 2 * max(costs.values()) + 1e-9


def test_a_cancelled_request_gives_its_slot_to_the_next():
    async def run():
        queue, order = FairQueue(1), []

        async def work(name):
            async with queue.slot(name, 1.0):
                order.append(name)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(work(name)) for name in "abcd"]
        await asyncio.sleep(0)
        assert queue.num_waiting == 3
        tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.gather(*tasks[:1], *tasks[2:])
        assert order == ["a", "c", "d"]
        running = asyncio.create_task(work("e"))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        await work("f")
        return queue._num_free

    assert asyncio.run(run()) == 1


def test_a_cancelled_request_is_not_charged():
    """A client whose requests timed out is served as if it had never sent them."""

    async def run():
        queue, order = FairQueue(1), []

        async def work(client, cost):
            async with queue.slot(client, cost):
                order.append(client)
                await asyncio.sleep(0)

        async with queue.slot("other", 1.0):
            lost = [asyncio.create_task(work("a", 100.0)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in lost:
                task.cancel()
            await asyncio.wait(lost)
            tasks = [asyncio.create_task(work(client, 1.0)) for client in ("b", "b", "a", "b")]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["b", "a", "b", "b"]


@pytest.mark.parametrize("num_greedy", [1, 2, 5])
def test_greedy_clients_leave_the_share_of_another_client(num_greedy):
    budget = SharedBudget(60)
    for _ in range(60):
        for number in range(num_greedy):
            budget.reserve(f"greedy {number}", 1)
    assert budget.limit - budget.used >= 60 // (num_greedy + 1) - num_greedy
    assert budget.reserve("modest", 1)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5))))
def test_a_budget_returns_exactly_what_was_reserved(amounts):
    budget = SharedBudget(30)
    reserved = [(client, amount) for client, amount in amounts if budget.reserve(client, amount)]
    assert budget.used == sum(amount for _, amount in reserved) <= 30
    for client, amount in reserved:
        budget.release(client, amount)
    assert budget.used == 0
    assert budget._used_by == {}


def test_a_reservation_that_does_not_fit_is_not_returned():
    budget = SharedBudget(10)
    with budget.reservation("a") as grow:
        assert [grow(4), grow(4), grow(1)] == [True, False, True]
        assert budget.used == 5
    assert budget.used == 0
