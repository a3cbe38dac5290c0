"""Which rows, in which order: the pure plan that every rank reads its share of.

From (seed, row groups, batch, sampler) follows an endless sequence of rows, epoch after epoch, that knows nothing of
the number of ranks. Position p of the sequence is slot p % batch of the global batch of step p // batch; a rank owns
slots. So every row comes once an epoch, or as often as the sampler says, every rank makes the same number of steps,
and a run continued at a step, on whatever number of ranks, meets the very next global batch: the data cursor is the
step.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import ceil
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Assignments(NamedTuple):
    """What slots hold in some steps; arrays (steps, slots).

    Attributes:
        epochs: the epoch a draw belongs to.
        rows: the row drawn.
        copies: how often this epoch drew the row before; 0 but for samplers that repeat.
    """

    epochs: Rows
    rows: Rows
    copies: Rows


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The endless order of one split's rows.

    Attributes:
        group_rows: rows of each row group of the split, shard after shard; row numbers count through them.
        batch: slots of a global batch.
        seed: decides the order.
        window: steps over which a slot shuffles the rows of its row groups. A split that is no larger than the
            windows of all slots together is shuffled whole.
        draws_per_row: (rows,) how often an epoch draws each row, on average over the epochs; none draws each once.
    """

    group_rows: tuple[int, ...]
    batch: int
    seed: int
    window: int = 64
    draws_per_row: NDArray[np.float64] | None = None

    @cached_property
    def rows(self) -> int:
        """Number of rows of the split."""
        return sum(self.group_rows)

    @cached_property
    def epoch_size(self) -> int:
        """Number of draws of an epoch: that of the rows, or what the sampler says, rounded up."""
        return self.rows if self.draws_per_row is None else max(1, ceil(float(self.draws_per_row.sum()) - 1e-6))

    @property
    def is_fully_shuffled(self) -> bool:
        """Whether the split is shuffled whole."""
        return self.epoch_size <= self.window * self.batch

    def assignments(self, start: int, stop: int, slots: Sequence[int]) -> Assignments:
        """Returns what these slots hold in the steps start..stop-1."""
        steps = np.arange(start, stop, dtype=np.int64)[:, None]
        positions = steps * self.batch + np.asarray(slots, dtype=np.int64)[None, :]
        quota = self.epoch_size
        epochs = positions // quota
        rows, copies = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order = epoch_order(self, epoch)
            rows[here], copies[here] = (part[positions[here] % quota] for part in order)
        return Assignments(epochs, rows, copies)

    def windows(self, start: int, stop: int) -> Iterator[range]:
        """Yields the steps start..stop-1 in runs, none of which crosses the border of a window."""
        while start < stop:
            end = min(self.window_of(start).stop, stop)
            yield range(start, end)
            start = end

    def window_of(self, step: int) -> range:
        """Returns the steps of the window that holds a step; a window never lasts into the next epoch's first step."""
        epoch = ((step + 1) * self.batch - 1) // self.epoch_size  # the latest that has begun
        first, end = (number * self.epoch_size // self.batch for number in (epoch, epoch + 1))
        begin = first + (step - first) // self.window * self.window
        return range(begin, min(begin + self.window, end))

    def mix_partners(self, step: int, slot: int, count: int, seed: int) -> list[int]:
        """Returns rows to mix with that of a slot: others that the same slot holds in the same window.

        They are read anyway, and do not depend on which rank owns the slot. Of a small split, all of which is at
        hand, they are any others that the epoch draws. A row has itself for company only where it is alone.
        """
        random = Random(seed)
        if self.is_fully_shuffled:
            epoch, own = divmod(step * self.batch + slot, self.epoch_size)
            rows = epoch_order(self, epoch)[0]
            return [int(rows[_other(own, range(self.epoch_size), random)]) for _ in range(count)]
        chosen = [_other(step, self.window_of(step), random) for _ in range(count)]
        return [int(self.assignments(one, one + 1, [slot]).rows[0, 0]) for one in chosen]


def _other(own: int, among: range, random: Random) -> int:
    """Returns one of the numbers that is not `own`, unless there is no other."""
    if len(among) == 1:
        return own
    found = among[random.randrange(len(among) - 1)]
    return found if found < own else found + 1


@lru_cache(maxsize=2)
def epoch_order(plan: EpochPlan, epoch: int) -> tuple[Rows, Rows]:
    """Returns (rows, copies) at each position of an epoch, (quota,).

    A small split is shuffled whole. In a large one the row groups are shuffled and dealt out to the slots, and each
    slot shuffles its rows in windows of some steps: a slot reads whole groups, once, while the rows of a batch come
    from as many places as it has slots.
    """
    random = np.random.default_rng([plan.seed, epoch])
    rows, copies = _drawn(plan, random)
    if plan.is_fully_shuffled:
        order = random.permutation(len(rows))
        return rows[order], copies[order]
    by_group = _in_shuffled_groups(plan, rows, random)
    positions = epoch * plan.epoch_size + np.arange(plan.epoch_size)
    steps, slots = positions // plan.batch, positions % plan.batch
    windows = (steps - steps[0]) // plan.window
    by_slot = np.argsort(slots, kind="stable")  # positions, slot after slot
    shuffled = by_group[np.lexsort((random.random(len(rows)), windows[by_slot], slots[by_slot]))]
    order = np.empty_like(shuffled)
    order[by_slot] = shuffled
    return rows[order], copies if plan.draws_per_row is None else copies[order]


def _drawn(plan: EpochPlan, random: np.random.Generator) -> tuple[Rows, Rows]:
    """Returns the rows that an epoch draws, ascending, and the number of each copy."""
    rows = np.arange(plan.rows)
    if plan.draws_per_row is None:
        return rows, np.broadcast_to(np.int64(0), rows.shape)  # of no size
    counts = _whole_times(plan.draws_per_row, plan.epoch_size, random)
    firsts = np.cumsum(counts) - counts
    return np.repeat(rows, counts), np.arange(plan.epoch_size) - np.repeat(firsts, counts)


def _whole_times(times: NDArray[np.float64], quota: int, random: np.random.Generator) -> Rows:
    """Returns how often this epoch draws each row: its times rounded up or down, `quota` in all.

    Systematic sampling over a random order: the mean over the epochs is `times`, but for the rounding of the quota.
    """
    order = random.permutation(len(times))
    ends = np.cumsum(times[order])
    ends *= quota / ends[-1]
    ends[-1] = quota  # whatever floating point made of it
    marks = np.floor(ends + random.random()).astype(np.int64)
    counts = np.empty_like(marks)
    counts[order] = np.diff(marks, prepend=0)
    return counts


def _in_shuffled_groups(plan: EpochPlan, rows: Rows, random: np.random.Generator) -> Rows:
    """Returns the indices of `rows` (ascending), row group after row group in a random order."""
    group = np.searchsorted(np.cumsum(plan.group_rows), rows, side="right")
    rank = random.permutation(len(plan.group_rows))
    return np.argsort(rank[group], kind="stable")


def rank_slots(rank: int, world: int, batch: int) -> range:
    """Returns the slots of a global batch that a rank owns; shares differ by at most one."""
    return range(rank * batch // world, (rank + 1) * batch // world)


def rank_rows(rank: int, world: int, rows: int) -> range:
    """Returns the rows a rank evaluates: each row belongs to one rank, shares differ by at most one."""
    return range(rank * rows // world, (rank + 1) * rows // world)


def row_seed(seed: int, epoch: int, row: int, copy: int = 0) -> int:
    """Returns the seed of one draw's augmentation, 0..2^32-1; ranks and workers do not enter it."""
    packed = struct.pack("<qqqq", seed, epoch, row, copy)
    return int.from_bytes(blake2b(packed, digest_size=4).digest(), "little")
