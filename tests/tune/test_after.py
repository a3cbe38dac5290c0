"""What comes behind the search."""

from types import SimpleNamespace

import pytest

from segray import checkpoint, config
from segray.errors import StoppedError, TrainingError
from segray.tune import after


@pytest.mark.parametrize("error", [StoppedError("run seed-1 was stopped."), TrainingError("run seed-1 failed.")])
def test_who_stops_a_run_of_another_seed_stops_the_sweep(error, tmp_path, monkeypatch):
    settings = config.build({"tune.seeds": 2})
    (tmp_path / "trial-000").mkdir()
    (tmp_path / "trial-000" / checkpoint.CONFIG).write_text(settings.model_dump_json())
    begun = SimpleNamespace(
        folder=tmp_path, config=settings, key="k", trials=[1], tracking_uri="", slots=SimpleNamespace(placement=None)
    )

    def fit(*_, **__):
        raise error

    monkeypatch.setattr(after, "fit", fit)
    said = []
    if isinstance(error, StoppedError):
        with pytest.raises(StoppedError):
            after._seeded(begun, SimpleNamespace(number=0), 1, said.append)
    else:
        assert after._seeded(begun, SimpleNamespace(number=0), 1, said.append) is None
        assert "failed" in said[-1]
