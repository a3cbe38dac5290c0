"""The plan: every row once an epoch or as often as it should, the same global batches for any number of ranks."""

import math
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.data.sampler import EpochPlan, rank_rows, rank_slots, row_seed

GROUPS = st.lists(st.integers(1, 20), min_size=1, max_size=40).map(tuple)


@st.composite
def plans(draw, samplers=(True, False)):
    """Plans small and large, shuffled whole and in windows, with and without a sampler."""
    groups = draw(GROUPS)
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    times = random.gamma(0.5, 2.0, sum(groups)) + 1e-3 if draw(st.sampled_from(samplers)) else None
    return EpochPlan(groups, draw(st.integers(1, 17)), draw(st.integers(0, 2**31)), draw(st.integers(1, 30)), times)


def sequence(plan, start, stop):
    share = plan.assignments(start, stop, range(plan.batch))
    return list(zip(*(part.reshape(-1).tolist() for part in share), strict=True))


@settings(deadline=None, max_examples=150)
@given(plans(samplers=[False]))
def test_every_row_is_drawn_once_per_epoch(plan):
    seen = sequence(plan, 0, -(-3 * plan.rows // plan.batch))[: 3 * plan.rows]
    assert Counter(seen) == Counter((epoch, row, 0) for epoch in range(3) for row in range(plan.rows))


@settings(deadline=None, max_examples=150)
@given(plans(samplers=[True]))
def test_a_sampler_draws_epoch_size_rows_in_every_epoch(plan):
    quota = math.ceil(plan.draws_per_row.sum() - 1e-6)
    expected = plan.draws_per_row * quota / plan.draws_per_row.sum()
    seen = sequence(plan, 0, -(-3 * quota // plan.batch))[: 3 * quota]
    for epoch in range(3):
        drawn = [(row, copy) for at, row, copy in seen if at == epoch]
        counts = np.bincount([row for row, _ in drawn], minlength=plan.rows)
        assert counts.sum() == quota
        assert (counts >= np.floor(plan.draws_per_row)).all()  # at least once stays at least once
        assert (np.abs(counts - expected) < 1 + 1e-6).all()  # rounded up or down
        assert len(set(drawn)) == quota  # copies are numbered, so that no two crops are alike
        assert max(copy for _, copy in drawn) == counts.max() - 1


def test_the_mean_over_the_epochs_equals_draws_per_row():
    times = np.array([0.05, 0.5, 1.0, 2.3, 0.15, 4.0])
    plan = EpochPlan((3, 3), 4, 0, 64, times)
    rows = [row for _, row, _ in sequence(plan, 0, 2 * 3000)]
    assert np.bincount(rows) / 3000 == pytest.approx(times, abs=0.06)


@settings(deadline=None, max_examples=100)
@given(plans(), st.integers(1, 8), st.integers(0, 60))
def test_the_ranks_together_have_the_global_batch(plan, world, start):
    stop = start + 5
    whole = plan.assignments(start, stop, range(plan.batch))
    shares = [plan.assignments(start, stop, rank_slots(rank, world, plan.batch)) for rank in range(world)]
    assert {len(share.rows) for share in shares} == {5}  # the same steps on every rank
    for number, part in enumerate(whole):
        assert np.array_equal(np.concatenate([share[number] for share in shares], axis=1), part)


@settings(deadline=None, max_examples=100)
@given(plans(), st.integers(0, 80), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5))
def test_resuming_at_a_step_with_other_ranks_gives_the_same_rows(plan, cut, more, before, after):
    def ranks(world, start, stop):
        shares = [plan.assignments(start, stop, rank_slots(rank, world, plan.batch)).rows for rank in range(world)]
        return np.concatenate(shares, axis=1)

    resumed = np.concatenate([ranks(before, 0, cut), ranks(after, cut, cut + more)])
    assert np.array_equal(resumed, plan.assignments(0, cut + more, range(plan.batch)).rows)


@settings(deadline=None, max_examples=100)
@given(plans(), st.integers(0, 60), st.integers(1, 60))
def test_windows_are_contiguous_and_independent_of_the_start(plan, start, more):
    stop = start + more
    runs = list(plan.windows(start, stop))
    assert [step for run in runs for step in run] == list(range(start, stop))
    assert all(len(run) <= plan.window for run in runs)
    everywhere = {run.start for run in plan.windows(0, stop)}
    assert {later.start for _, later in pairwise(runs)} <= everywhere
    for run in runs:
        assert all(plan.window_of(step) == plan.window_of(run.start) for step in run)


@settings(deadline=None, max_examples=60)
@given(plans(), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_mix_partners_are_rows_of_the_same_slot_and_window(plan, step, seed):
    slot = seed % plan.batch
    window = plan.window_of(step)
    if plan.is_fully_shuffled:
        epoch = (step * plan.batch + slot) // plan.epoch_size
        steps = range(epoch * plan.epoch_size // plan.batch, -(-(epoch + 1) * plan.epoch_size // plan.batch))
        share = plan.assignments(steps.start, steps.stop, range(plan.batch))
        held = Counter(share.rows[share.epochs == epoch].tolist())
    else:
        held = Counter(plan.assignments(window.start, window.stop, [slot]).rows.reshape(-1).tolist())
    own = int(plan.assignments(step, step + 1, [slot]).rows[0, 0])
    result = plan.mix_partners(step, slot, 3, seed)
    assert len(result) == 3
    assert set(result) <= set(held)
    assert own not in result or held[own] > 1 or held.total() == 1
    assert result == plan.mix_partners(step, slot, 3, seed)


@given(st.integers(0, 500), st.integers(1, 16))
def test_rank_ranges_are_even_and_complete(rows, world):
    for shares in (rank_rows, rank_slots):
        parts = [shares(rank, world, rows) for rank in range(world)]
        assert [row for part in parts for row in part] == list(range(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None, max_examples=30)
@given(plans())
def test_a_plan_is_deterministic_and_picklable(plan):
    there = pickle.loads(pickle.dumps(plan))
    assert sequence(there, 0, 30) == sequence(plan, 0, 30)
    assert sequence(plan, 7, 9) == sequence(plan, 0, 30)[7 * plan.batch : 9 * plan.batch]


def test_epochs_and_seeds_differ():
    plan = EpochPlan((16,) * 10, 4, 7)
    first, second = plan.assignments(0, 40, range(4)).rows, plan.assignments(40, 80, range(4)).rows
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, EpochPlan((16,) * 10, 4, 8).assignments(0, 40, range(4)).rows)
    draws = [
        (seed, epoch, row, copy) for seed in range(5) for epoch in range(5) for row in range(40) for copy in (0, 1)
    ]
    assert len({row_seed(*draw) for draw in draws}) == 2000


def test_slots_of_a_large_split_read_each_group_once_and_batches_are_mixed():
    plan = EpochPlan((16,) * 1000, 8, 0, 64)
    rows = plan.assignments(0, 2000, range(8)).rows  # one epoch
    for slot in range(8):
        groups = [set((rows[run.start : run.stop, slot] // 16).tolist()) for run in plan.windows(0, 2000)]
        assert sum(map(len, groups)) <= len(set.union(*groups)) + len(groups)  # but for one that a border cuts
        assert len(set.union(*groups)) == 125
    assert all(len(set((batch // 16).tolist())) >= 7 for batch in rows)


def test_a_small_split_is_shuffled_globally():
    plan = EpochPlan((16,) * 40, 8, 0, 80)
    slots = [set((plan.assignments(0, 80, [slot]).rows // 16).reshape(-1).tolist()) for slot in range(8)]
    assert min(map(len, slots)) > 30
