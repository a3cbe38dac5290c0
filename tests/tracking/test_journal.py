"""The journal: whole records in order, also while it is being written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray.tracking.journal import JOURNAL, Journal, JournalReader


def test_a_tail_reads_whole_lines_once_and_goes_on_from_its_offset(tmp_path):
    journal = Journal(tmp_path)
    tail = JournalReader(journal.path)
    assert list(tail.read()) == []
    journal.write("metrics", step=1)
    with journal.path.open("a") as file:
        file.write('{"kind": "metrics", "st')
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
        file.write('{"kind": "metrics", "st')
    journal.write("metrics", step=2)
    assert [record["step"] for record in journal.records()] == [1, 2]
    assert journal.last_step() == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Journal(tmp_path).write("metrics", step=1)
