"""Records of a wrong form in a journal are refused with a message that names it."""

import json
import os

import pytest

from segray.core.errors import DataError
from segray.tracking.evaluations import _training_run_id
from segray.tracking.journal import Journal
from segray.tune.journal import SweepJournal


@pytest.mark.parametrize(
    "record",
    [
        [1],
        3,
        {"kind": "metrics", "time_ms": "now"},
        {"time_ms": 1},
        {"kind": "metrics", "time_ms": 1, "step": "1", "values": {}},
        {"kind": "text", "time_ms": 1, "name": "config.json"},
        {"kind": "image", "time_ms": 1, "file": 3, "place": "report"},
        {"kind": "tag", "time_ms": 1, "name": "outcome"},
        {"kind": "model", "time_ms": 1, "folder": "step-00000010", "name": "streets", "aliases": "challenger"},
        {"kind": "metrics", "time_ms": 1, "step": 1, "values": {"loss": "low"}},
        {"kind": "end", "time_ms": 1, "status": None},
    ],
)
def test_an_invalid_record_names_the_journal(tmp_path, record):
    (tmp_path / "journal.jsonl").write_text(f"{json.dumps(record)}\n")
    with pytest.raises(DataError, match=r"journal\.jsonl has an invalid record before byte \d+"):
        Journal(tmp_path).last_step()


def test_a_pipe_is_no_journal(tmp_path):
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        Journal(tmp_path).records()


def test_a_state_of_an_unknown_trial_names_the_journal_of_the_sweep(tmp_path):
    journal = SweepJournal(tmp_path, ("val/miou",))
    fields = {"state": "paused", "why": "", "values": {}, "copies": None, "step": 1, "costs": {}, "seconds": 1.0}
    journal.journal.write("became", number=3, **fields)
    with pytest.raises(DataError, match=r"journal\.jsonl has an invalid record of a trial"):
        journal.load_trials()


@pytest.mark.parametrize("text", [b"\xff", b"[]", b"{", b"[" * 100_000, b'{"uri": "sqlite:///x.db"}'])
def test_a_damaged_state_of_the_upload_names_no_run(tmp_path, text):
    (tmp_path / "uploaded.json").write_bytes(text)
    assert _training_run_id("sqlite:///x.db", "run", tmp_path / "step-000001") is None
