"""The start of a sweep in its journal: the warm start, the time spent, and what a damaged journal gives."""

import json

import pytest

from segray.core.errors import DataError
from segray.tracking.journal import JOURNAL
from segray.tune.journal import SweepJournal
from segray.tune.search import PriorTrial
from segray.tune.setup import _read_start

RUN = {"kind": "run", "key": "k", "dataset": {"digest": "d"}, "known": [[{"optim.lr": 1e-3}, {"val/miou": 0.5}]]}


def read_start(folder, *records):
    lines = [json.dumps({"time_ms": 1000, **record}) for record in records]
    (folder / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    return _read_start(SweepJournal(folder, ("val/miou",)))


def test_the_start_has_the_key_the_time_and_the_prior_trials(tmp_path):
    later = {"kind": "trial", "number": 0, "values": {}, "time_ms": 3500}
    key, spent_s, prior_trials = read_start(tmp_path, RUN, later, {"kind": "resumed", "time_ms": 9000})
    assert (key, spent_s) == ("k", 2.5)
    assert prior_trials == (PriorTrial({"optim.lr": 1e-3}, {"val/miou": 0.5}),)


def test_a_clock_that_was_set_back_costs_no_time(tmp_path):
    assert read_start(tmp_path, RUN | {"time_ms": 9000}, {"kind": "resumed", "time_ms": 1000})[1] == 0


@pytest.mark.parametrize(
    "records",
    [
        (),
        ({"kind": "event", "text": "x"},),
        ({**RUN, "known": 3},),
        ({**RUN, "known": [1]},),
        ({**RUN, "known": [[1, 2]]},),
        ({key: value for key, value in RUN.items() if key != "known"},),
        ({key: value for key, value in RUN.items() if key != "key"},),
    ],
)
def test_a_damaged_start_is_refused_with_the_name_of_the_journal(records, tmp_path):
    with pytest.raises(DataError, match="journal.jsonl"):
        read_start(tmp_path, *records)
