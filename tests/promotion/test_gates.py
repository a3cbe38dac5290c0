"""Gates: each decides as written at its border, alone and beside others, and says why in its figures."""

from dataclasses import replace
from math import nan

import pytest

from segray.config import PromoteConfig
from segray.evaluation.compare import Comparison, MetricDelta
from segray.evaluation.metrics.bootstrap import Interval
from segray.promotion.gates import ModelMeasurements, evaluate_gates

CLASSES = ("road", "car", "sky")
OLD = ModelMeasurements("1", CLASSES, 0.5, {"road": 0.8, "car": 0.4, "sky": 0.3}, latency_ms=10.0, size_mib=14.0)
NEW = ModelMeasurements("2", CLASSES, 0.6, {"road": 0.8, "car": 0.5, "sky": 0.5}, latency_ms=10.0, size_mib=14.0)
ALL = ["package integrity", "classes", "relative latency", "mean IoU", "class IoU drop"]


def compared(low=0.05, high=0.15, support=50, **gains):
    found = {"road": 0.0, "car": 0.1, "sky": 0.2} | gains
    by_class = {name: MetricDelta(0.5 + gain, 0.5, Interval(gain, gain), support) for name, gain in found.items()}
    whole = MetricDelta(0.6, 0.5, Interval(low, high), support)
    return Comparison(whole, by_class, whole, ())


def refused_by(gates=None, new=NEW, old=OLD, comparison=None):
    decision = evaluate_gates(PromoteConfig(**(gates or {})), new, old, comparison or compared())
    assert decision.is_passed == (not decision.reasons)
    return [check.gate for check in decision.checks if not check.is_passed]


def test_a_better_model_passes_every_gate_and_each_is_told():
    decision = evaluate_gates(PromoteConfig(), NEW, OLD, compared())
    assert decision.is_passed
    assert decision.reasons == []
    assert (decision.challenger, decision.champion) == ("2", "1")
    assert [check.gate for check in decision.checks] == ALL


@pytest.mark.parametrize(
    ("low", "support", "drop", "is_passed"),
    [
        (-0.0099, 50, 0.01, True),
        (-0.01, 50, 0.01, False),  # the end itself is not above it
        (-0.0101, 50, 0.01, False),
        (0.0001, 50, 0.0, True),
        (0.0, 50, 0.0, False),
        (0.3, 10, 0.01, True),
        (0.3, 9, 0.01, False),  # too few to be told
        (nan, 50, 0.01, False),
    ],
)
def test_the_mean_may_be_lower_by_no_more_than_was_allowed_with_confidence(low, support, drop, is_passed):
    found = refused_by({"max_miou_drop": drop}, comparison=compared(low=low, support=support))
    assert found == ([] if is_passed else ["mean IoU"])


def test_a_gain_that_chance_may_have_made_is_no_gain():
    decision = evaluate_gates(PromoteConfig(), NEW, OLD, compared(low=-0.2, high=0.4))
    assert decision.reasons == [
        "mean IoU: 0.6000 (champion 0.5000), difference +0.1000 [-0.2000, +0.4000]; "
        "expected 95% interval of the difference above -0.01"
    ]


@pytest.mark.parametrize(
    ("gains", "is_passed"),
    [
        ({"sky": -0.0625}, True),
        ({"sky": -0.0626}, False),
        ({"sky": nan}, True),
        ({"road": nan, "car": nan, "sky": nan}, False),  # nothing can be told
    ],
)
def test_no_class_may_lose_more_than_was_allowed(gains, is_passed):
    assert refused_by({"max_class_iou_drop": 0.0625}, comparison=compared(**gains)) == (
        [] if is_passed else ["class IoU drop"]
    )


def test_every_class_that_lost_is_named_worst_first():
    decision = evaluate_gates(PromoteConfig(), NEW, OLD, compared(road=-0.1, sky=-0.3))
    assert decision.reasons == [
        "class IoU drop: sky -0.3000, road -0.1000; expected a drop of at most 0.05 in every class"
    ]


@pytest.mark.parametrize(
    ("floor", "is_passed", "said"),
    [
        (0.0, True, None),
        (0.5, True, "car 0.5000"),
        (0.5001, False, "car 0.5000, sky 0.5000"),
        ({"road": 0.8}, True, "road 0.8000"),
        ({"road": 0.81, "car": 0.1}, False, "road 0.8000"),
        ({"tram": 0.1}, False, "tram is not a class of the model"),
    ],
)
def test_a_class_below_its_floor_is_refused(floor, is_passed, said):
    decision = evaluate_gates(PromoteConfig(min_class_iou=floor), NEW)
    assert decision.is_passed == is_passed
    assert [check.observed for check in decision.checks if check.gate == "class IoU"] == ([said] if said else [])


@pytest.mark.parametrize("floor", [0.1, {"sky": 0.1}])
def test_a_class_that_was_not_seen_is_below_any_floor(floor):
    unseen = replace(NEW, iou={"road": 0.8, "car": 0.5, "sky": None})
    assert refused_by({"min_class_iou": floor}, unseen) == ["class IoU"]


def test_of_many_classes_below_ten_are_named_and_the_others_counted():
    names = tuple(f"c{number:02d}" for number in range(150))
    many = replace(NEW, classes=names, iou=dict.fromkeys(names, 0.1))
    (reason,) = evaluate_gates(PromoteConfig(min_class_iou=0.2), many).reasons
    assert "c09 0.1000 and 140 more" in reason
    assert "c10" not in reason


@pytest.mark.parametrize(
    ("gates", "latency_ms", "size_mib", "refused"),
    [
        ({}, 20.0, 14.0, []),
        ({}, 20.1, 14.0, ["relative latency"]),
        ({"max_latency_ratio": 1.0}, 10.1, 14.0, ["relative latency"]),
        ({"max_latency_ratio": None}, 900.0, 14.0, []),
        ({"max_latency_ms": 15}, 15.0, 14.0, []),
        ({"max_latency_ms": 15}, 15.1, 14.0, ["latency"]),
        ({"max_size_mib": 14}, 10.0, 14.0, []),
        ({"max_size_mib": 14}, 10.0, 14.1, ["size"]),
        ({"max_latency_ms": 15, "max_size_mib": 14}, 21.0, 14.1, ["latency", "size", "relative latency"]),
    ],
)
def test_budgets_of_time_and_size(gates, latency_ms, size_mib, refused):
    assert refused_by(gates, replace(NEW, latency_ms=latency_ms, size_mib=size_mib)) == refused


@pytest.mark.parametrize(
    ("names", "changed", "found"),
    [
        (("road", "car", "sky"), (), "identical"),
        (("road", "car"), (), "missing: sky"),
        (("road", "car"), ("sky",), None),
        (("road", "car", "sky", "tram"), (), "additional: tram"),
        (("road", "car", "sky", "tram"), ("tram",), None),
        (("road", "tram"), ("tram", "car"), "missing: car, sky; additional: tram"),
        (("road", "tram"), ("tram", "car", "sky"), None),
        (("car", "road", "sky"), ("car", "road"), "different order"),
    ],
)
def test_other_classes_are_refused_unless_all_that_differ_are_named(names, changed, found):
    new = replace(NEW, classes=names, iou=dict.fromkeys(names, 0.9))
    decision = evaluate_gates(PromoteConfig(allowed_class_changes=changed), new, OLD)
    (check,) = [check for check in decision.checks if check.gate == "classes"]
    assert check.is_passed == (found in (None, "identical"))
    assert found is None or check.observed == found
    differ = {*names} ^ {*CLASSES}
    assert check.is_passed or not differ or all(name in check.expected for name in differ)


def test_what_is_not_stored_as_it_was_trained_is_refused_with_what_differs():
    decision = evaluate_gates(PromoteConfig(), replace(NEW, mismatch="its weights are others"), OLD, compared())
    assert decision.reasons == [
        "package integrity: its weights are others; expected files of the registered checkpoint"
    ]


def test_without_a_champion_only_the_challengers_own_gates_are_asked():
    slow = replace(NEW, latency_ms=1000.0)
    decision = evaluate_gates(PromoteConfig(min_class_iou=0.1, max_latency_ms=5, max_size_mib=20), slow)
    assert decision.champion is None
    assert [(check.gate, check.is_passed) for check in decision.checks] == [
        ("package integrity", True),
        ("class IoU", True),
        ("latency", False),
        ("size", True),
    ]


def test_several_gates_refuse_beside_each_other():
    worse = replace(NEW, mismatch="x", latency_ms=100.0, iou={"road": 0.1, "car": 0.5, "sky": 0.5})
    found = refused_by({"min_class_iou": 0.2, "max_size_mib": 1}, worse, comparison=compared(low=-1, sky=-0.9))
    assert found == ["package integrity", "class IoU", "size", "relative latency", "mean IoU", "class IoU drop"]
