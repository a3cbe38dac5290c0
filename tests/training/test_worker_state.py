"""End of a run: after its last step, or early without improvement."""

import pytest

from segray import config
from segray.training.worker_state import RunProgress

VALIDATIONS = [(1, 0.1), (2, 0.3), (3, 0.35), (4, 0.2), (5, 0.34), (6, 0.1)]


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({}, 6),
        ({"patience": 1}, 4),
        ({"patience": 2}, 5),
        ({"patience": 1, "min_steps": 5}, 5),
        ({"patience": 2, "min_delta": 0.1}, 4),  # 0.35 is no more than 0.1 better than 0.3
    ],
)
def test_a_run_ends_after_its_steps_or_when_its_patience_is_exhausted(settings, last):
    wanted = config.build({"train": {"steps": 6, "val_every": 1, "batch": 1} | settings, "optim.warmup_steps": 1})
    progress = RunProgress()
    for step, score in VALIDATIONS:
        assert not progress.is_over(wanted)
        progress.step, progress.owed = step, {"train/loss": 1.0}
        assert not progress.is_over(wanted)  # a validation is owed
        progress.validated({"val/miou": score}, wanted)
        if step == last:
            break
    assert progress.is_over(wanted)
    assert progress.best == max(score for _, score in VALIDATIONS[:last])
