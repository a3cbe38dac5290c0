"""Checks of the doctor that need no cluster."""

from segray.cluster.doctor.checks import Severity
from segray.config import DataConfig
from segray.training.diagnose import _check_augment


def test_an_invalid_transform_is_a_failed_check():
    assert _check_augment(DataConfig()) == _check_augment(DataConfig(augment=("ScaledCrop",))) == []
    (result,) = _check_augment(DataConfig(augment=("ScaledCorp",)))
    assert result.level is Severity.FAIL
    assert result.found.startswith("data.augment contains ScaledCorp, which is not a transform")
