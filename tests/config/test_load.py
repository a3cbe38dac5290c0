"""The configuration refuses what cannot run, and says so by dotted name."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segray import config
from segray.config import Config
from segray.core.errors import ConfigError


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"data": {"crop": 500}}, "data.crop is 500; expected a multiple of 32; use 512."),
        ({"data.crop": 10}, "data.crop is 10; expected a multiple of 32; use 32."),
        ({"data": {"crp": 512}}, "data.crp is not a setting; did you mean data.crop?"),
        ({"lr": 1e-3}, "lr is not a setting; did you mean optim.lr?"),
        ({"optim": {"lr": -1}}, "optim.lr is -1; expected greater than 0."),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast'; expected number"),
        ({"model": {"variant": "b6"}}, "model.variant is 'b6'; expected 'b0', 'b1', 'b2', 'b3', 'b4' or 'b5'."),
        ({"train": {"batch": 2, "workers": 3}}, "train.batch is 2; expected at least one image for each of the 3"),
        ({"train": {"steps": 10}}, "optim.warmup_steps is 1500; expected fewer than train.steps, 10."),
        ({"data": 5}, "data is 5; expected"),
        ({"data": {"scale_min": 3.0}}, "data.scale_min is 3.0; expected at most data.scale_max, 2.0."),
    ],
)
def test_an_impossible_setting_is_refused_by_its_dotted_name(tree, said):
    with pytest.raises(ConfigError) as raised:
        config.build(tree)
    assert said in str(raised.value)
    assert "pydantic" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as raised:
        config.build({"optim": {"lr": 0}, "data": {"crop": 33}, "trian": {}})
    assert "3 settings" in str(raised.value)
    assert "did you mean train" in str(raised.value)


def test_later_files_win_and_flags_win_over_files(tmp_path):
    (tmp_path / "a.yaml").write_text("optim:\n  lr: 1e-5\n  weight_decay: 0.5\n")
    (tmp_path / "b.yaml").write_text("optim: {lr: 2e-5}\ntrain: {seed: 3}\n")
    loaded = config.load([tmp_path / "a.yaml", tmp_path / "b.yaml"], {"train.seed": "4"})
    assert (loaded.optim.lr, loaded.optim.weight_decay, loaded.train.seed) == (2e-5, 0.5, 4)


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00"])
def test_a_config_file_that_is_none_is_named(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        config.load([file])
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        config.load([tmp_path / "gone.yaml"])


@given(st.floats(1e-9, 1), st.integers(1, 64), st.booleans())
def test_flat_keys_and_yaml_bring_a_config_back(lr, batch, photometric):
    made = config.build({"optim.lr": lr, "train.batch": batch, "data.photometric": photometric})
    assert config.build(config.flatten(made)) == made
    assert config.build(yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json")))) == made


def test_the_digest_ignores_names_and_places_and_nothing_else():
    plain = Config()
    assert config.build({"name": "x", "results": "/r", "tracking.uri": "http://h"}).digest == plain.digest
    for key, value in {"optim.lr": 1e-4, "train.seed": 1, "data.crop": 256, "model.variant": "b1"}.items():
        assert config.build({key: value}).digest != plain.digest


def test_an_unknown_section_without_a_setting_is_an_error():
    with pytest.raises(ConfigError, match="optim.first is not a setting"):
        config.build({"optim": {"first": {"second": {}}}})
