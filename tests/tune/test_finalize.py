"""Runs with other seeds after the search."""

from types import SimpleNamespace

import pytest

from segray import config
from segray.core.errors import RunStoppedError, TrainingError
from segray.models import checkpoint
from segray.tune import finalize


@pytest.mark.parametrize("error", [RunStoppedError("run seed-1 was stopped."), TrainingError("run seed-1 failed.")])
def test_a_stop_during_a_run_with_another_seed_stops_the_sweep(error, tmp_path, monkeypatch):
    settings = config.build({"tune.seeds": 2})
    (tmp_path / "trial-000").mkdir()
    (tmp_path / "trial-000" / checkpoint.CONFIG).write_text(settings.model_dump_json())
    sweep = SimpleNamespace(
        folder=tmp_path,
        config=settings,
        key="k",
        trials=[1],
        tracking_uri="",
        slots=SimpleNamespace(placement=None),
        initial_weights={},
    )

    def fit(*_, **__):
        raise error

    monkeypatch.setattr(finalize, "fit", fit)
    messages = []
    if isinstance(error, RunStoppedError):
        with pytest.raises(RunStoppedError):
            finalize._train_with_seed(sweep, SimpleNamespace(number=0), 1, messages.append)
    else:
        assert finalize._train_with_seed(sweep, SimpleNamespace(number=0), 1, messages.append) is None
        assert "failed" in messages[-1]
