"""Turns: who runs when, and what a ratio means."""

import torch

from benchmarks.interleave import time_row
from segray.inference.timing import WARM_UP, time_interleaved

CPU = torch.device("cpu")


def test_contenders_alternate_and_the_first_rounds_are_not_counted():
    ran = []
    series = time_interleaved([lambda: ran.append("a"), lambda: ran.append("b")], 3, CPU)
    assert ran == ["a", "b"] * (WARM_UP + 3)
    assert [len(times) for times in series] == [3, 3]


def test_the_slow_contender_is_the_one_with_the_long_times():
    matrix = torch.randn(200, 200)
    quick, slow = time_interleaved([lambda: matrix @ matrix, lambda: [matrix @ matrix for _ in range(50)]], 3, CPU)
    assert max(quick) < min(slow)


def test_a_ratio_above_1_is_better_for_us():
    row = time_row("train_step", "peer", [1.0, 9.0, 2.0], [4.0, 5.0, 90.0], "s")
    assert (row.ours, row.theirs, row.ratio, row.turns) == (2.0, 5.0, 2.5, 3)
