"""Epoch plan: the order in which the rows of a split are drawn, identical on every rank.

The plan is a pure function of seed, row groups, batch size and sampler. It defines an infinite sequence of rows, epoch
after epoch, that does not depend on the number of ranks. Position p of the sequence is slot p % batch of the global
batch of step p // batch, and each rank owns a range of slots.

Every row is drawn once per epoch, or as often as the sampler specifies. Every rank makes the same number of steps. A
run that resumes at a step, on any number of ranks, continues with the next global batch, so the step is the data
cursor.
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
    """Rows assigned to slots in a range of steps; all arrays have shape (steps, slots).

    Attributes:
        epochs: epoch of each draw.
        rows: row number of each draw.
        copies: number of earlier draws of the same row in this epoch; 0 unless the sampler repeats rows.
    """

    epochs: Rows
    rows: Rows
    copies: Rows


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Infinite order of the rows of one split.

    Attributes:
        group_rows: number of rows in each row group of the split, in shard order. Rows are numbered consecutively over
            them.
        batch: number of slots in a global batch.
        seed: seed of the order.
        window: number of steps over which a slot shuffles the rows of its row groups. A split that is not larger than
            the windows of all slots together is shuffled globally.
        draws_per_row: mean number of draws per epoch for each row, (rows,); defaults to `None`, which draws each row
            once.
    """

    group_rows: tuple[int, ...]
    batch: int
    seed: int
    window: int = 64
    draws_per_row: NDArray[np.float64] | None = None

    @cached_property
    def rows(self) -> int:
        """Number of rows in the split."""
        return sum(self.group_rows)

    @cached_property
    def epoch_size(self) -> int:
        """Number of draws per epoch: the number of rows, or the sum of `draws_per_row` rounded up."""
        return self.rows if self.draws_per_row is None else max(1, ceil(float(self.draws_per_row.sum()) - 1e-6))

    @property
    def is_fully_shuffled(self) -> bool:
        """`True` if the split is small enough to be shuffled globally."""
        return self.epoch_size <= self.window * self.batch

    def assignments(self, start: int, stop: int, slots: Sequence[int]) -> Assignments:
        """Returns the assignments of the slots for steps start..stop-1."""
        steps = np.arange(start, stop, dtype=np.int64)[:, None]
        positions = steps * self.batch + np.asarray(slots, dtype=np.int64)[None, :]
        epochs = positions // self.epoch_size
        rows, copies = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            offsets = positions[in_epoch] % self.epoch_size
            epoch_rows, epoch_copies = epoch_order(self, epoch)
            rows[in_epoch], copies[in_epoch] = epoch_rows[offsets], epoch_copies[offsets]
        return Assignments(epochs, rows, copies)

    def windows(self, start: int, stop: int) -> Iterator[range]:
        """Yields the steps start..stop-1 as ranges that do not cross a window boundary."""
        while start < stop:
            end = min(self.window_of(start).stop, stop)
            yield range(start, end)
            start = end

    def window_of(self, step: int) -> range:
        """Returns the steps of the window that contains a step; a window ends before the next epoch's first step."""
        epoch = ((step + 1) * self.batch - 1) // self.epoch_size  # latest epoch that has started by this step
        epoch_start, epoch_end = (number * self.epoch_size // self.batch for number in (epoch, epoch + 1))
        start = epoch_start + (step - epoch_start) // self.window * self.window
        return range(start, min(start + self.window, epoch_end))

    def mix_partners(self, step: int, slot: int, count: int, seed: int) -> list[int]:
        """Returns `count` rows to mix with the row of a slot, sampled from the other rows of the same slot and window.

        These rows are read anyway and do not depend on the rank that owns the slot. For a globally shuffled split, the
        partners are sampled from the other draws of the epoch. A row is mixed with itself only if there is no other
        row.
        """
        random = Random(seed)
        if self.is_fully_shuffled:
            epoch, position = divmod(step * self.batch + slot, self.epoch_size)
            rows = epoch_order(self, epoch)[0]
            return [int(rows[_sample_other(position, range(self.epoch_size), random)]) for _ in range(count)]
        other_steps = [_sample_other(step, self.window_of(step), random) for _ in range(count)]
        return [int(self.assignments(other, other + 1, [slot]).rows[0, 0]) for other in other_steps]


def _sample_other(number: int, candidates: range, random: Random) -> int:
    """Samples a candidate that differs from `number`, or returns `number` if it is the only candidate."""
    if len(candidates) == 1:
        return number
    other = candidates[random.randrange(len(candidates) - 1)]
    return other if other < number else other + 1


@lru_cache(maxsize=2)
def epoch_order(plan: EpochPlan, epoch: int) -> tuple[Rows, Rows]:
    """Returns (rows, copies) for each position of an epoch, (epoch_size,) each.

    A small split is shuffled globally. In a large split, the row groups are shuffled and distributed over the slots,
    and each slot shuffles its rows within windows of steps. Each slot therefore reads whole row groups once, while the
    rows of a batch come from as many row groups as there are slots.
    """
    random = np.random.default_rng([plan.seed, epoch])
    rows, copies = _draw_rows(plan, random)
    if plan.is_fully_shuffled:
        order = random.permutation(len(rows))
        return rows[order], copies[order]
    by_group = _order_by_shuffled_groups(plan, rows, random)
    positions = epoch * plan.epoch_size + np.arange(plan.epoch_size)
    steps, slots = positions // plan.batch, positions % plan.batch
    windows = (steps - steps[0]) // plan.window
    by_slot = np.argsort(slots, kind="stable")  # positions ordered by slot
    shuffled = by_group[np.lexsort((random.random(len(rows)), windows[by_slot], slots[by_slot]))]
    order = np.empty_like(shuffled)
    order[by_slot] = shuffled
    return rows[order], copies if plan.draws_per_row is None else copies[order]


def _draw_rows(plan: EpochPlan, random: np.random.Generator) -> tuple[Rows, Rows]:
    """Returns the rows that an epoch draws, ascending, and the copy number of each."""
    rows = np.arange(plan.rows)
    if plan.draws_per_row is None:
        return rows, np.broadcast_to(np.int64(0), rows.shape)  # a broadcast view allocates no memory
    counts = _round_draws(plan.draws_per_row, plan.epoch_size, random)
    first_positions = np.cumsum(counts) - counts
    return np.repeat(rows, counts), np.arange(plan.epoch_size) - np.repeat(first_positions, counts)


def _round_draws(draws_per_row: NDArray[np.float64], total: int, random: np.random.Generator) -> Rows:
    """Returns the number of draws of each row in this epoch: `draws_per_row` rounded up or down, with the sum `total`.

    Uses systematic sampling over a random order. The mean over the epochs equals `draws_per_row`, except for the
    rounding of the total.
    """
    order = random.permutation(len(draws_per_row))
    ends = np.cumsum(draws_per_row[order])
    ends *= total / ends[-1]
    ends[-1] = total  # removes floating-point error
    marks = np.floor(ends + random.random()).astype(np.int64)
    counts = np.empty_like(marks)
    counts[order] = np.diff(marks, prepend=0)
    return counts


def _order_by_shuffled_groups(plan: EpochPlan, rows: Rows, random: np.random.Generator) -> Rows:
    """Returns the indices of `rows` (ascending), ordered by row group with the row groups in random order."""
    groups = np.searchsorted(np.cumsum(plan.group_rows), rows, side="right")
    group_order = random.permutation(len(plan.group_rows))
    return np.argsort(group_order[groups], kind="stable")


def rank_slots(rank: int, world: int, batch: int) -> range:
    """Returns the slots of a global batch that a rank owns; the ranges of the ranks differ in length by at most one."""
    return range(rank * batch // world, (rank + 1) * batch // world)


def rank_rows(rank: int, world: int, rows: int) -> range:
    """Returns the rows that a rank evaluates; the ranges of the ranks differ in length by at most one."""
    return range(rank * rows // world, (rank + 1) * rows // world)


def row_seed(seed: int, epoch: int, row: int, copy: int = 0) -> int:
    """Returns the augmentation seed of one draw, 0..2^32-1; it does not depend on ranks or workers."""
    packed = struct.pack("<qqqq", seed, epoch, row, copy)
    return int.from_bytes(blake2b(packed, digest_size=4).digest(), "little")
