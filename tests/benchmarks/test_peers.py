"""The contenders: alike in everything that is not to be measured."""

from dataclasses import replace

import pytest
import torch

from benchmarks import memory
from benchmarks.peers import (
    OURS,
    TRANSFORMERS,
    Case,
    ImplementationSpec,
    build_implementation,
    count_macs,
    max_relative_difference,
)
from segray.core.errors import ModelError

CASE = Case("b0", 64, 2, 5, "cpu", "float32")


@pytest.fixture(scope="module")
def both():
    pytest.importorskip("transformers")
    return build_implementation(ImplementationSpec(OURS), CASE), build_implementation(
        ImplementationSpec(TRANSFORMERS), CASE
    )


def test_both_give_the_same_answer(both):
    assert max_relative_difference(*both) < 1e-4


def test_another_answer_would_be_seen(both):
    other = build_implementation(ImplementationSpec(TRANSFORMERS), CASE)
    with torch.no_grad():
        other.model.decode_head.classifier.weight.mul_(1.5)
    assert max_relative_difference(both[0], other) > 1e-3


def test_both_have_the_same_loss_where_nothing_is_dropped(both):
    losses = []
    for one in both:
        one.model.eval()
        losses.append(one.loss().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_a_train_step_trains(both, index):
    one = both[index]
    before = [parameter.detach().clone() for parameter in one.model.parameters()]
    one.train_step(one.optimiser())
    moved = [not torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True)]
    assert sum(moved) > 0.95 * len(moved)  # a key's bias has no gradient


def test_multiply_accumulates_are_those_of_the_published_head_and_ours_fewer():
    case = replace(CASE, size=512, classes=19)
    ours, theirs = (count_macs(name, case) / 1e9 for name in (OURS, TRANSFORMERS))
    assert ours == pytest.approx(3.58, abs=0.01)
    assert theirs == pytest.approx(7.84, abs=0.05)


def test_an_unknown_peer_is_refused():
    with pytest.raises(ModelError, match="expected one of transformers"):
        build_implementation(ImplementationSpec("nobody"), CASE)


@pytest.mark.slow
def test_the_peak_grows_with_the_batch():
    if not memory.can_measure(torch.device("cpu")):
        pytest.skip("this system does not tell a process's peak")
    small, large = (
        memory.peak_bytes(ImplementationSpec(OURS), replace(CASE, size=256, batch=batch), 1) for batch in (1, 6)
    )
    assert large > 1.5 * small > 1.5 * 4 * 3 * 3_700_000 * 0.9  # at least parameters, gradients and one moment
