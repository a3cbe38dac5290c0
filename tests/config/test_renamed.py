"""Earlier names of settings: files, flags and stored runs that use them mean the same."""

import re
from pathlib import Path

import pytest

from segray import config
from segray.config.renamed import RENAMED, current_key
from segray.core.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs/renames.md"
SETTINGS = re.findall(r"^\| `([a-z]+\.\w+)` \| `([a-z]+\.\w+)` \|$", PAGE.read_text(), re.M)
OTHER_THAN_DEFAULT = {
    "data.augment_on": "cluster",
    "model.activation_checkpointing": True,
    "model.norm_eps_from": "mmseg",
    "optim.max_grad_norm": 1.0,
    "eval.absent_classes": "nan",
    "tune.metrics": ["val/macc"],
    "tune.max_concurrent": 3,
    "tune.grace_steps": 5,
    "tune.perturbation_interval": 7,
    "promote.max_latency_ms": 12.5,
    "promote.max_size_mib": 20.0,
    "promote.allowed_class_changes": ["road"],
    "serve.max_replicas": 3,
}


def value_of(key):
    """A valid value of a setting that is not its default."""
    if key in OTHER_THAN_DEFAULT:
        return OTHER_THAN_DEFAULT[key]
    usual = config.flatten(config.Config())[key]
    return usual + 1 if isinstance(usual, int) and usual >= 1 else usual / 2 + 0.1 if usual < 1 else usual * 1.5


def test_the_page_lists_all_settings():
    assert dict(SETTINGS) == {
        f"{section}.{old}": f"{section}.{new}" for section, names in RENAMED.items() for old, new in names.items()
    }


@pytest.mark.parametrize(("old", "new"), SETTINGS)
def test_an_earlier_name_means_the_same(old, new):
    value = value_of(new)
    if new == "train.accumulation_steps":
        assert value == 2
    expected, settings = config.build({new: value}), config.build({old: value})
    assert settings == expected != config.Config()
    assert settings.digest == expected.digest
    assert current_key(old) == new == current_key(new)
    assert old not in config.flatten(settings)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"data.decode": "trainer"}, {"data.augment_on": "worker"}),
        ({"data.decode": "cluster"}, {"data.augment_on": "cluster"}),
        ({"eval.precision": "float16"}, {"eval.precision": "fp16"}),
        ({"serve.precision": "bfloat16"}, {"serve.precision": "bf16"}),
    ],
)
def test_earlier_values_mean_the_same(old, new):
    assert config.build(old) == config.build(new)


def test_a_later_file_or_flag_overrides_an_earlier_one_under_either_name(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {hang_timeout_s: 10, ema: 0.5}")
    second.write_text("train: {hang_s: 20, ema_decay: 0.25}")
    assert config.load([first]).train.ema_decay == 0.5
    assert config.load([first, second]).train.hang_timeout_s == 20
    assert config.load([second, first]).train.hang_timeout_s == 10
    assert config.load([first, second]).train.ema_decay == 0.25
    assert config.load([first], {"train.hang_s": "30"}).train.hang_timeout_s == 30


def test_both_names_in_one_file_are_an_error(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("train: {hang_timeout_s: 10, hang_s: 20}")
    with pytest.raises(ConfigError, match=r"train.hang_s is not a setting; did you mean train.hang_timeout_s\?"):
        config.load([file])


def test_a_search_space_may_use_earlier_names():
    space = {"train": {"ema": {"uniform": [0.0, 0.5]}}, "optim.clip": {"choice": [1, 2]}}
    assert set(config.build({"tune.space": space}).tune.space) == {"train.ema_decay", "optim.max_grad_norm"}


def test_both_names_in_a_search_space_are_an_error():
    space = {"optim.max_grad_norm": {"choice": [1, 2]}, "optim.clip": {"choice": [3]}}
    with pytest.raises(ConfigError, match=r"tune.space.optim.clip is .*; expected one entry for optim.max_grad_norm."):
        config.build({"tune.space": space})
