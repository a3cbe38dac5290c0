"""Which MLflow run an evaluation belongs to."""

import json

import pytest

from segray.tracking import evaluations
from segray.tracking.uploader import STATE_FILE


@pytest.mark.parametrize(
    ("uri", "run_id"), [("http://me:h1dden@host", "r"), ("http://me:another@host", "r"), ("http://host", None)]
)
def test_the_run_of_a_checkpoint_is_known_where_it_was_uploaded_to(uri, run_id, tmp_path):
    (tmp_path / STATE_FILE).write_text(json.dumps({"uri": "http://me:***@host", "run_id": "r"}))
    assert evaluations._training_run_id(uri, "results/run/step-000001", tmp_path / "step-000001") == run_id
