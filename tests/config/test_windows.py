"""The stride of sliding windows is compared with the crop that the windows have, once it is known."""

import pytest

from segray import config
from segray.core.errors import ConfigError


def test_a_stride_beyond_the_default_crop_is_valid_for_a_model_with_larger_crops():
    """`evaluate --eval.stride 700` of a checkpoint that was trained on crops of 1024 px."""
    flags = config.build({"eval": {"mode": "slide", "stride": 700}})
    overrides = flags.eval.model_dump(exclude_unset=True)
    assert config.build({"data.crop": 1024}).with_eval_overrides(overrides).eval.stride == 700
    with pytest.raises(ConfigError, match=r"eval\.stride is 700; expected at most the window size 512"):
        config.build({"data.crop": 512}).with_eval_overrides(overrides)


@pytest.mark.parametrize("known", [{"data.crop": 512}, {"eval.crop": 512}])
def test_a_stride_beyond_a_given_crop_is_an_error_at_once(known):
    with pytest.raises(ConfigError, match=r"eval\.stride is 700; expected at most the window size 512"):
        config.build({"eval.mode": "slide", "eval.stride": 700} | known)


def test_settings_that_are_stored_are_complete():
    stored = config.build({}).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"eval\.stride is 700"):
        config.build(config.merge(stored, {"eval.mode": "slide", "eval.stride": 700}))
