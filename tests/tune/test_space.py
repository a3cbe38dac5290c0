"""The search space: its dimensions, and validation before a sweep starts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray import config
from segray.core.errors import ConfigError
from segray.tune import space
from segray.tune.space import Dimension


def settings(search_space, **overrides):
    return config.build(
        {"tune.space": search_space} | {key.replace("__", "."): value for key, value in overrides.items()}
    )


@pytest.mark.parametrize(
    ("definition", "message"),
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
        (
            {"data.augment": {"choice": [["ScaledCrop"], ["ScaledCorp"]]}},
            "tune.space contains data.augment ['ScaledCorp'], which is invalid: data.augment contains ScaledCorp,",
        ),
        ({"optim.lr": {"uniform": [-1, 1]}}, "tune.space contains optim.lr -1.0, which is invalid"),
        ({"train.seed": {"int": [0.5, 3]}}, "expected two integers"),
        ({"optim.lr": {"choice": [1e-3, 1e-3]}}, "expected distinct values"),
        ({"train.steps": {"int": [10, 20]}}, "train.steps, which must be the same in all trials"),
        ({"tracking.model": {"choice": ["a"]}}, "tracking.model, which must be the same in all trials"),
        ({}, "tune.space is empty"),
    ],
)
def test_an_invalid_space_is_an_error_that_names_the_setting(definition, message):
    with pytest.raises(ConfigError) as refused:
        space.validate_space(settings(definition))
    assert message in str(refused.value)


def test_invalid_combinations_are_an_error():
    search_space = {"train.batch": {"choice": [2, 16]}, "train.accumulation_steps": {"choice": [1, 8]}}
    with pytest.raises(ConfigError, match=r"train.batch 2, train.accumulation_steps 8, which is invalid"):
        space.validate_space(settings(search_space))


def test_only_complete_combinations_are_validated():
    search_space = {"train.batch": {"choice": [32, 64]}, "train.accumulation_steps": {"choice": [1, 16]}}
    space.validate_space(settings(search_space, train__batch=8))
    with pytest.raises(ConfigError, match=r"train.accumulation_steps is 16|train.accumulation_steps 16"):
        space.validate_space(
            settings({"train.accumulation_steps": search_space["train.accumulation_steps"]}, train__batch=8)
        )


def test_a_grid_with_too_many_points_is_an_error():
    search_space = {
        "model.variant": {"choice": ["b0", "b1", "b2"]},
        "data.crop": {"choice": [64, 96]},
        "train.seed": {"choice": [*range(9)]},
    }
    with pytest.raises(ConfigError, match=r"the grid has 54 points \(3 model.variant x 2 data.crop x 9 train.seed\)"):
        space.validate_space(settings(search_space, tune__search="grid"))
    space.validate_space(settings(search_space, tune__search="grid", tune__trials=54))


def test_a_grid_with_ranges_is_an_error():
    with pytest.raises(
        ConfigError, match=r"tune.space.optim.lr is 0.1 to 1; expected choice: \[...\] for tune.search grid"
    ):
        space.validate_space(settings({"optim.lr": {"uniform": [0.1, 1]}}, tune__search="grid"))


def test_the_space_of_the_documents_is_valid():
    search_space = {
        "optim": {"lr": {"loguniform": ["1e-5", "1e-3"]}},  # as YAML reads 1e-5
        "model.variant": {"choice": ["b0", "b5"]},
        "loss.terms": {"choice": [["cross_entropy"], ["ohem", {"dice": 0.5}]]},
    }
    sweep_config = settings(search_space)
    space.validate_space(sweep_config)
    assert [str(one) for one in space.dimensions(sweep_config)] == [
        "1e-05 to 0.001 (log)",
        "b0, b5",
        "['cross_entropy'], ['ohem', {'dice': 0.5}]",
    ]
    trial = space.apply_values(sweep_config, {"optim.lr": 5e-4, "loss.terms": ["ohem", {"dice": 0.5}]})
    assert (trial.optim.lr, trial.loss.weight_by_loss(), trial.tune.space) == (5e-4, {"ohem": 1.0, "dice": 0.5}, {})


NUMBERS = st.floats(1e-6, 1e6, allow_nan=False)


@given(st.sampled_from(["uniform", "loguniform", "int", "logint"]), NUMBERS, NUMBERS, st.floats(0, 1))
def test_values_are_within_the_bounds_and_have_their_position(kind, one, other, position):
    low, high = sorted((one, other))
    if kind.endswith("int"):
        low, high = max(1, math.floor(low)), math.ceil(high) + 1
    if not high > low * (1 + 1e-6):
        return
    dimension = Dimension("x", kind, (low, high))
    value = dimension.from_unit(position)
    assert low <= value <= high
    assert dimension.contains(value)
    if not dimension.is_integer:
        assert dimension.to_unit(value) == pytest.approx(position, abs=1e-5)


def test_all_integers_are_equally_likely():
    dimension = Dimension("x", "int", (1, 4))
    samples = [dimension.from_unit((place + 0.5) / 400) for place in range(400)]
    assert {value: samples.count(value) for value in (1, 2, 3, 4)} == {1: 100, 2: 100, 3: 100, 4: 100}


def test_samples_depend_only_on_seed_and_number():
    search_space = space.dimensions(
        settings({"optim.lr": {"loguniform": [1e-5, 1]}, "data.crop": {"choice": [32, 64, 96]}})
    )
    samples = [space.sample(search_space, 1, number) for number in range(50)]
    assert samples == [space.sample(search_space, 1, number) for number in range(50)]
    assert samples != [space.sample(search_space, 2, number) for number in range(50)]
    assert len({values["optim.lr"] for values in samples}) == 50
    assert {values["data.crop"] for values in samples} == {32, 64, 96}
    below = sum(values["optim.lr"] < 10**-2.5 for values in samples)
    assert 15 < below < 35  # half of the decades
