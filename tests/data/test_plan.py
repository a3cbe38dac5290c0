"""The plan: every row once an epoch, the same global batches for any number of ranks, from any step on."""

import pickle
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.data import plan as plans
from segray.data.plan import Plan, row_seed, rows_of, slots_of

GROUPS = st.lists(st.integers(1, 20), min_size=1, max_size=40).map(tuple)


@st.composite
def plan_of(draw):
    return Plan(draw(GROUPS), draw(st.integers(1, 17)), draw(st.integers(0, 2**31)))


def sequence(plan, start, stop):
    epochs, rows = plan.share(start, stop, range(plan.batch))
    return list(zip(epochs.reshape(-1).tolist(), rows.reshape(-1).tolist(), strict=True))


@settings(deadline=None)
@given(plan_of(), st.sampled_from([0, 4096]))
def test_every_row_comes_once_an_epoch(plan, whole):
    before, plans.WHOLE_SHUFFLE_ROWS = plans.WHOLE_SHUFFLE_ROWS, whole  # small splits through the large path too
    plans.epoch_order.cache_clear()
    try:
        steps = -(-3 * plan.rows // plan.batch)
        seen = sequence(plan, 0, steps)[: 3 * plan.rows]
    finally:
        plans.WHOLE_SHUFFLE_ROWS = before
        plans.epoch_order.cache_clear()
    assert Counter(seen) == Counter((epoch, row) for epoch in range(3) for row in range(plan.rows))


@settings(deadline=None)
@given(plan_of(), st.integers(1, 8), st.integers(0, 60))
def test_ranks_together_hold_the_global_batch_whatever_their_number(plan, world, start):
    stop = start + 5
    whole = plan.share(start, stop, range(plan.batch))
    shares = [plan.share(start, stop, slots_of(rank, world, plan.batch)) for rank in range(world)]
    for part in (0, 1):
        assert np.array_equal(np.concatenate([share[part] for share in shares], axis=1), whole[part])


@settings(deadline=None)
@given(plan_of(), st.integers(0, 80), st.integers(1, 20))
def test_continuing_at_a_step_is_the_same_as_never_having_stopped(plan, cut, more):
    assert sequence(plan, 0, cut) + sequence(plan, cut, cut + more) == sequence(plan, 0, cut + more)


@given(st.integers(0, 500), st.integers(1, 16))
def test_shares_are_even_and_complete(rows, world):
    for shares in (rows_of, slots_of):
        parts = [shares(rank, world, rows) for rank in range(world)]
        assert [row for part in parts for row in part] == list(range(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_and_seeds_differ_and_repeat():
    plan = Plan((16,) * 10, 4, 7)
    first, second = plan.share(0, 40, range(4))[1], plan.share(40, 80, range(4))[1]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, pickle.loads(pickle.dumps(plan)).share(0, 40, range(4))[1])
    assert not np.array_equal(first, Plan((16,) * 10, 4, 8).share(0, 40, range(4))[1])
    seeds = {row_seed(seed, epoch, row) for seed in range(5) for epoch in range(5) for row in range(40)}
    assert len(seeds) == 1000


def test_in_a_large_split_a_slot_reads_whole_groups_and_a_batch_is_mixed():
    plan = Plan((16,) * 1000, 8, 0)
    rows = plan.share(0, 100, range(8))[1]
    groups_of_a_slot = [len(set((rows[:, slot] // 16).tolist())) for slot in range(8)]
    assert max(groups_of_a_slot) <= 100 // 16 + 5  # a uniform shuffle would touch almost a hundred
    assert all(len(set((batch // 16).tolist())) >= 7 for batch in rows)
