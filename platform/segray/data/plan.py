"""Which rows, in which order: the pure plan that every rank reads its share of.

From (seed, row groups, batch) follows an endless sequence of rows, epoch after epoch, that knows nothing of the
number of ranks. Position p of the sequence is slot p % batch of the global batch of step p // batch; a rank
owns slots. So every row comes once an epoch, every rank makes the same number of steps, and a run continued at
a step, on whatever number of ranks, meets the very next global batch: the data cursor is the step.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

WHOLE_SHUFFLE_ROWS = 4096
WINDOW_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """The endless order of one split's rows.

    Attributes:
        group_rows: rows of each row group of the split, shard after shard; row numbers count through them.
        batch: slots of a global batch.
        seed: decides the order.
    """

    group_rows: tuple[int, ...]
    batch: int
    seed: int

    @property
    def rows(self) -> int:
        """Number of rows of an epoch."""
        return sum(self.group_rows)

    def share(self, start: int, stop: int, slots: range) -> tuple[Rows, Rows]:
        """Returns (epochs, rows), each (stop - start, len(slots)): what these slots hold in these steps."""
        steps = np.arange(start, stop, dtype=np.int64)[:, None]
        positions = steps * self.batch + np.asarray(slots, dtype=np.int64)[None, :]
        epochs = positions // self.rows
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = epoch_order(self, epoch)[positions[here] % self.rows]
        return epochs, rows


@lru_cache(maxsize=4)
def epoch_order(plan: Plan, epoch: int) -> Rows:
    """Returns the row at each position of an epoch, (rows,), a permutation.

    A small split is shuffled whole. In a large one the row groups are shuffled and dealt out to the slots, and
    each slot shuffles its rows in windows of a few groups: a slot reads whole groups, once, while the rows of
    a batch come from as many places as it has slots.
    """
    random = np.random.default_rng([plan.seed, epoch])
    if plan.rows <= WHOLE_SHUFFLE_ROWS:
        return random.permutation(plan.rows).astype(np.int64)
    by_group = _in_shuffled_groups(plan.group_rows, random)
    slots = (epoch * plan.rows + np.arange(plan.rows)) % plan.batch
    counts = np.bincount(slots, minlength=plan.batch)
    slot = np.repeat(np.arange(plan.batch), counts)
    within = np.arange(plan.rows) - np.repeat(np.cumsum(counts) - counts, counts)
    by_slot = by_group[np.lexsort((random.random(plan.rows), within // WINDOW_ROWS, slot))]
    order = np.empty(plan.rows, dtype=np.int64)
    order[np.argsort(slots, kind="stable")] = by_slot
    return order


def _in_shuffled_groups(group_rows: tuple[int, ...], random: np.random.Generator) -> Rows:
    sizes = np.asarray(group_rows, dtype=np.int64)
    firsts = np.cumsum(sizes) - sizes
    order = random.permutation(len(sizes))
    starts = np.repeat(firsts[order] - (np.cumsum(sizes[order]) - sizes[order]), sizes[order])
    return starts + np.arange(sizes.sum())


def slots_of(rank: int, world: int, batch: int) -> range:
    """Returns the slots of a global batch that a rank owns; shares differ by at most one."""
    return range(rank * batch // world, (rank + 1) * batch // world)


def rows_of(rank: int, world: int, rows: int) -> range:
    """Returns the rows a rank evaluates: each row belongs to one rank, shares differ by at most one."""
    return range(rank * rows // world, (rank + 1) * rows // world)


def row_seed(seed: int, epoch: int, row: int) -> int:
    """Returns the seed of one row's augmentation, 0..2^32-1; ranks and workers do not enter it."""
    packed = struct.pack("<qqq", seed, epoch, row)
    return int.from_bytes(blake2b(packed, digest_size=4).digest(), "little")
