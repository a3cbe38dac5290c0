"""Results of a sweep, setting importances and gradient accumulation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray import config
from segray.tune.accumulation import AccumulationTable, with_doubled_accumulation
from segray.tune.report.importance import setting_importances
from segray.tune.results import best_trial, failure_reasons, pareto_front, sweep_cost
from segray.tune.space import Dimension, sample
from segray.tune.trial import State, Trial

METRICS = ("val/miou", "cost/latency_ms")


def trial(number, miou, latency=None, state=State.FINISHED):
    return Trial(number, {}, state, {10: miou}, {} if latency is None else {"cost/latency_ms": latency})


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_trial_dominates_the_pareto_front(points):
    trials = [trial(number, miou / 10, float(latency)) for number, (miou, latency) in enumerate(points)]
    expected = [
        one.number
        for one, (miou, latency) in zip(trials, points, strict=True)
        if not any(a >= miou and b <= latency and (a, b) != (miou, latency) for a, b in points)
    ]
    assert [one.number for one in pareto_front(trials, METRICS)] == expected


def test_a_trial_with_an_unknown_cost_is_not_on_the_front():
    assert [one.number for one in pareto_front([trial(0, 0.9), trial(1, 0.5, 3.0)], METRICS)] == [1]


def test_a_failed_trial_dominates_no_other():
    assert [one.number for one in pareto_front([trial(0, 0.9, 1.0, State.FAILED), trial(1, 0.5, 3.0)], METRICS)] == [1]


def test_the_best_trial_is_a_finished_one_if_there_is_any():
    stopped, finished, failed = trial(0, 0.9, state=State.STOPPED), trial(1, 0.5), trial(2, 0.95, state=State.FAILED)
    assert best_trial([stopped, finished, failed]) is finished
    assert best_trial([stopped, failed]) is stopped
    assert best_trial([failed]) is None


def test_saved_hours_are_the_cost_of_the_steps_that_did_not_run():
    trials = [trial(0, 0.5), Trial(1, {}, State.STOPPED, {5: 0.1}, seconds=1800.0)]
    trials[0].seconds = 3600.0
    cost = sweep_cost(trials, 10, 4)
    assert (cost.steps, cost.whole, cost.worker_hours) == (15, 20, 6.0)
    assert cost.saved == pytest.approx(2.0)
    trials[1].reason = "the budget is spent"
    assert sweep_cost(trials, 10, 4, "the budget is spent").saved == 0
    assert sweep_cost([trial(0, 0.5), Trial(1, {}, State.FAILED, {5: 0.1})], 10, 4).saved == 0


def test_failure_reasons_are_grouped_by_frequency():
    trials = [Trial(number, {}, State.FAILED, reason=why) for number, why in enumerate(["b", "a\nmore", "a", "a"])]
    assert failure_reasons([*trials, trial(9, 0.1)]) == "\n  3 x (trial 1, 2, 3): a\n  1 x (trial 0): b"
    begins_alike = [Trial(number, {}, State.FAILED, reason=why) for number, why in enumerate(["a", "ab", "a"])]
    assert failure_reasons(begins_alike) == "\n  2 x (trial 0, 2): a\n  1 x (trial 1): ab"


SPACE = (
    Dimension("strong", "uniform", (0.0, 1.0)),
    Dimension("weak", "uniform", (0.0, 1.0)),
    Dimension("none", "choice", ("x", "y", "z")),
)


def test_important_settings_have_a_higher_importance():
    trials = []
    for number in range(64):
        values = sample(SPACE, 0, number)
        trials.append(Trial(number, values, State.FINISHED, {10: values["strong"] + 0.3 * values["weak"]}))
    importances = setting_importances(SPACE, trials, 10)
    assert [one.key for one in importances] == ["strong", "weak", "none"]
    assert importances[0].mean > 0.7
    assert importances[2].mean < 0.2
    assert all(one.deviation > 0 for one in importances[:2])
    few = setting_importances(SPACE, trials[:10], 10)
    assert next(one for one in few if one.key == "strong").deviation > importances[0].deviation


def test_few_trials_have_no_importances():
    trials = [Trial(number, sample(SPACE, 0, number), State.FINISHED, {10: number / 10}) for number in range(8)]
    assert setting_importances(SPACE, trials, 10) != []
    assert setting_importances(SPACE, trials[:7], 10) == []


def build_config(**over):
    return config.build(
        {"train.batch": 16, "train.workers": 2} | {key.replace("__", "."): one for key, one in over.items()}
    )


def test_accumulation_steps_double_until_one_image_is_left():
    accumulation_steps, doubled = [], build_config(train__batch=12)
    while (doubled := with_doubled_accumulation(doubled)) is not None:
        accumulation_steps.append(doubled.train.accumulation_steps)
    assert accumulation_steps == [2, 4, 6]


def test_trials_that_need_at_least_as_much_memory_get_as_many_accumulation_steps():
    table = AccumulationTable()
    table.record(build_config(model__variant="b2", data__crop=384, train__accumulation_steps=4))
    assert table.accumulation_steps(build_config(model__variant="b2", data__crop=384)) == 4
    assert table.accumulation_steps(build_config(model__variant="b5", data__crop=512)) == 4
    assert table.accumulation_steps(build_config(model__variant="b5", data__crop=512, train__accumulation_steps=8)) == 8
    assert table.accumulation_steps(build_config(model__variant="b1", data__crop=512)) == 1
    assert table.accumulation_steps(build_config(model__variant="b2", data__crop=352)) == 1
    assert table.accumulation_steps(build_config(model__variant="b2", data__crop=384, train__precision="bf16")) == 1
    assert table.accumulation_steps(build_config(model__variant="b2", data__crop=384, train__batch=4)) == 1
