"""The journal: whole records in order, also while it is being written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray.core.errors import DataError
from segray.tracking.journal import JOURNAL, Journal, JournalReader


def test_a_tail_reads_whole_lines_once_and_goes_on_from_its_offset(tmp_path):
    journal = Journal(tmp_path)
    tail = JournalReader(journal.path)
    assert list(tail.read()) == []
    journal.write("metrics", step=1)
    with journal.path.open("a") as file:
        file.write('{"kind": "metrics", "time_ms": 2, "st')
    assert [record["step"] for record in tail.read()] == [1]
    assert list(tail.read()) == []
    with journal.path.open("a") as file:
        file.write('ep": 2}\n')
    assert [record["step"] for record in JournalReader(journal.path, tail.offset).read()] == [2]


def test_records_of_many_writers_do_not_mix(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: Journal(tmp_path).write("metrics", step=step, pad="y" * 3000), range(200)))
    assert sorted(record["step"] for record in JournalReader(Journal(tmp_path).path).read()) == list(range(200))


def test_half_a_record_is_passed_over_and_the_next_one_is_whole(tmp_path):
    """What a kill or a full disk leaves."""
    journal = Journal(tmp_path)
    journal.write("metrics", step=1)
    with journal.path.open("a") as file:
        file.write('{"kind": "metrics", "time_ms": 2, "st')
    journal.write("metrics", step=2)
    assert [record["step"] for record in journal.records()] == [1, 2]
    assert journal.last_step() == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Journal(tmp_path).write("metrics", step=1)


@pytest.mark.parametrize(
    "line",
    [
        "",
        '{"kind": "metrics", "time_ms": 1, "step": 1, "values": {}}',
        '{"kind": "run", "time_ms": 1, "dataset": {"digest": "d"}}',
        '{"kind": "run", "time_ms": 1, "key": "k"}',
        '{"kind": "run", "time_ms": 1, "key": "k", "dataset": {}}',
        '{"kind": "run", "time_ms": 1, "key": "k", "dataset": "d"}',
        '{"kind": "run", "key": "k", "dataset": {"digest": "d"}}',
    ],
)
def test_a_journal_without_its_start_is_refused_with_its_name(line, tmp_path):
    (tmp_path / JOURNAL).write_text(f"{line}\n")
    with pytest.raises(DataError, match="journal.jsonl"):
        Journal(tmp_path).start()


def test_the_start_of_a_journal_is_its_first_record(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", key="k", dataset={"digest": "d"})
    journal.write("resumed", dataset={"digest": "e"})
    assert journal.start()["key"] == "k"


def test_a_journal_that_links_to_itself_is_refused(tmp_path):
    (tmp_path / JOURNAL).symlink_to(tmp_path / JOURNAL)
    with pytest.raises(DataError, match="is a link to itself"):
        Journal(tmp_path).records()
