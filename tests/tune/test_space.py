"""The search space: what it holds is what was written, and what cannot be trained is refused before anything starts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray import config
from segray.core.errors import ConfigError
from segray.tune import space
from segray.tune.space import Dimension


def settings(of, **over):
    return config.build({"tune.space": of} | {key.replace("__", "."): value for key, value in over.items()})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            {"optim.lrr": {"uniform": [0, 1]}},
            "tune.space contains optim.lrr, which is not a setting; did you mean 'optim.lr'?",
        ),
        ({"lr": {"uniform": [0, 1]}}, "did you mean 'optim.lr'?"),
        ({"optim.lr": {"choice": []}}, "tune.space.optim.lr.choice is []; expected at least one value."),
        ({"optim.lr": {"uniform": [1, 0.1]}}, "tune.space.optim.lr.uniform is [1, 0.1]; expected LOW < HIGH."),
        ({"optim.lr": {"uniform": [0, float("inf")]}}, "expected LOW < HIGH"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "expected LOW > 0"),
        ({"optim.lr": {"uniform": [0.1]}}, "expected two numbers, [LOW, HIGH]"),
        ({"optim.lr": {"normal": [0, 1]}}, "tune.space.optim.lr.normal is [0, 1]; expected one of uniform"),
        ({"data.crop": {"choice": [96, 100]}}, "tune.space contains data.crop 100, which is invalid"),
        ({"data.crop": {"int": [256, 512]}}, ", which is invalid: data.crop is "),  # of 32 px alone
        ({"optim.lr": {"uniform": [-1, 1]}}, "tune.space contains optim.lr -1.0, which is invalid"),
        ({"train.seed": {"int": [0.5, 3]}}, "expected two integers"),
        ({"optim.lr": {"choice": [1e-3, 1e-3]}}, "expected distinct values"),
        ({"train.steps": {"int": [10, 20]}}, "train.steps, which must be the same in all trials"),
        ({"tracking.model": {"choice": ["a"]}}, "tracking.model, which must be the same in all trials"),
        ({}, "tune.space is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(written, told):
    with pytest.raises(ConfigError) as refused:
        space.validate_space(settings(written))
    assert told in str(refused.value)


def test_combinations_that_cannot_be_trained_are_refused():
    of = {"train.batch": {"choice": [2, 16]}, "train.accumulation_steps": {"choice": [1, 8]}}
    with pytest.raises(ConfigError, match=r"train.batch 2, train.accumulation_steps 8, which is invalid"):
        space.validate_space(settings(of))


def test_what_can_be_trained_together_need_not_be_alone():
    of = {"train.batch": {"choice": [32, 64]}, "train.accumulation_steps": {"choice": [1, 16]}}
    space.validate_space(settings(of, train__batch=8))
    with pytest.raises(ConfigError, match=r"train.accumulation_steps is 16|train.accumulation_steps 16"):
        space.validate_space(settings({"train.accumulation_steps": of["train.accumulation_steps"]}, train__batch=8))


def test_a_grid_that_explodes_is_counted():
    of = {
        "model.variant": {"choice": ["b0", "b1", "b2"]},
        "data.crop": {"choice": [64, 96]},
        "train.seed": {"choice": [*range(9)]},
    }
    with pytest.raises(ConfigError, match=r"the grid has 54 points \(3 model.variant x 2 data.crop x 9 train.seed\)"):
        space.validate_space(settings(of, tune__search="grid"))
    space.validate_space(settings(of, tune__search="grid", tune__trials=54))


def test_a_grid_of_numbers_is_refused():
    with pytest.raises(
        ConfigError, match=r"tune.space.optim.lr is 0.1 to 1; expected choice: \[...\] for tune.search grid"
    ):
        space.validate_space(settings({"optim.lr": {"uniform": [0.1, 1]}}, tune__search="grid"))


def test_the_file_of_the_readme_is_searched():
    of = {
        "optim": {"lr": {"loguniform": ["1e-5", "1e-3"]}},  # as YAML reads 1e-5
        "model.variant": {"choice": ["b0", "b5"]},
        "loss.terms": {"choice": [["cross_entropy"], ["ohem", {"dice": 0.5}]]},
    }
    made = settings(of)
    space.validate_space(made)
    assert [str(one) for one in space.dimensions(made)] == [
        "1e-05 to 0.001 (log)",
        "b0, b5",
        "['cross_entropy'], ['ohem', {'dice': 0.5}]",
    ]
    trial = space.apply_values(made, {"optim.lr": 5e-4, "loss.terms": ["ohem", {"dice": 0.5}]})
    assert (trial.optim.lr, trial.loss.weight_by_loss(), trial.tune.space) == (5e-4, {"ohem": 1.0, "dice": 0.5}, {})


NUMBERS = st.floats(1e-6, 1e6, allow_nan=False)


@given(st.sampled_from(["uniform", "loguniform", "int", "logint"]), NUMBERS, NUMBERS, st.floats(0, 1))
def test_a_value_lies_within_and_is_found_again(kind, one, other, share):
    low, high = sorted((one, other))
    if kind.endswith("int"):
        low, high = max(1, math.floor(low)), math.ceil(high) + 1
    if not high > low * (1 + 1e-6):
        return
    dimension = Dimension("x", kind, (low, high))
    value = dimension.from_unit(share)
    assert low <= value <= high
    assert dimension.contains(value)
    if not dimension.is_integer:
        assert dimension.to_unit(value) == pytest.approx(share, abs=1e-5)


def test_whole_numbers_are_all_as_likely():
    dimension = Dimension("x", "int", (1, 4))
    drawn = [dimension.from_unit((place + 0.5) / 400) for place in range(400)]
    assert {value: drawn.count(value) for value in (1, 2, 3, 4)} == {1: 100, 2: 100, 3: 100, 4: 100}


def test_what_is_drawn_is_decided_by_seed_and_number():
    of = space.dimensions(settings({"optim.lr": {"loguniform": [1e-5, 1]}, "data.crop": {"choice": [32, 64, 96]}}))
    drawn = [space.sample(of, 1, number) for number in range(50)]
    assert drawn == [space.sample(of, 1, number) for number in range(50)]
    assert drawn != [space.sample(of, 2, number) for number in range(50)]
    assert len({values["optim.lr"] for values in drawn}) == 50
    assert {values["data.crop"] for values in drawn} == {32, 64, 96}
    below = sum(values["optim.lr"] < 10**-2.5 for values in drawn)
    assert 15 < below < 35  # half of the decades
