"""Setup of a run with the context of a sweep."""

import pytest

from segray import config
from segray.cluster.resources import WorkerResources
from segray.core.errors import ConfigError
from segray.data.manifest import read_manifest
from segray.training.setup import prepare_run, validate_splits
from segray.training.trial_context import TrialContext

STORE = "http://me:h1dden@127.0.0.1:1"


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_gets_the_password_of_the_store_and_writes_it_to_no_file(tiny):
    shown = tiny.model_copy(update={"tracking": tiny.tracking.model_copy(update={"uri": "http://me:***@127.0.0.1:1"})})
    part = TrialContext("key", 0, WorkerResources(1, "cpu", 1, 1, 0, 0), STORE)
    prepared = prepare_run(shown, None, (), lambda _line: None, part)
    prepared.lock.close()
    assert prepared.tracking_uri == STORE
    assert "h1dden" not in repr(part)
    for file in prepared.folder.iterdir():
        assert "h1dden" not in file.read_text()


def test_a_stride_beyond_the_default_crop_ends_a_run_before_it_starts(tiny):
    flags = config.build({"data": {"root": tiny.data.root}, "eval": {"mode": "slide", "stride": 700}})
    with pytest.raises(ConfigError, match=r"eval\.stride is 700; expected at most the window size 512"):
        validate_splits(flags, read_manifest(tiny.data.root))
