"""The gates' settings: as a flag or a file spells them, and no matter of a run's own."""

import pytest

from segray import config
from segray.core.errors import ConfigError
from segray.training.setup import is_run_param


@pytest.mark.parametrize(
    ("given", "found"),
    [("0.3", 0.3), (0.3, 0.3), ("{road: 0.9, person: 1}", {"road": 0.9, "person": 1.0}), ({"sky": 0.5}, {"sky": 0.5})],
)
def test_floors_are_of_every_class_or_of_those_named(given, found):
    assert config.build({"promote": {"min_class_iou": given}}).promote.min_class_iou == found


@pytest.mark.parametrize("given", ["1.3", "{road: yes}", "{1: 0.5}", "[0.3]", None, "{road: -0.1}", "{"])
def test_what_is_no_floor_is_refused_with_what_would_be_one(given):
    with pytest.raises(ConfigError, match="promote.min_class_iou is .*; expected a number from 0 to 1 for all classes"):
        config.build({"promote.min_class_iou": given})


@pytest.mark.parametrize(("given", "found"), [("road", ("road",)), ("[a, b]", ("a", "b")), (["a"], ("a",))])
def test_changed_classes_are_names(given, found):
    assert config.build({"promote.allowed_class_changes": given}).promote.allowed_class_changes == found


@pytest.mark.parametrize("given", ["[a, no]", "{a: b}", 3])
def test_what_is_no_name_of_a_class_is_refused(given):
    with pytest.raises(ConfigError, match="promote.allowed_class_changes is .*; expected a list of class names"):
        config.build({"promote.allowed_class_changes": given})


def test_gates_decide_nothing_that_is_learned_and_are_no_params_of_a_run():
    assert config.build({"promote.max_miou_drop": 0.5}).digest == config.build({}).digest
    keys = config.flatten(config.build({}))
    assert "promote.max_miou_drop" in keys
    assert not any(is_run_param(key, is_sweep=True) for key in keys if key.startswith(("promote.", "serve.")))
    assert [is_run_param("tune.trials", is_sweep) for is_sweep in (False, True)] == [False, True]
    assert is_run_param("optim.lr", is_sweep=False)
