"""A job's folder: whose it is, and how far it is."""

import pytest

from segray.core.errors import DataError
from segray.inference.batch.progress import SUMMARY, ChunkResult, JobProgress

JOB = {"source": "/images", "model": "a"}


@pytest.fixture
def record(tmp_path):
    return JobProgress(str(tmp_path / "out"))


def test_what_was_noted_is_known_to_the_next_try_and_forgotten_at_the_end(record, tmp_path):
    with record.lock(JOB) as done:
        assert done == {}
        record.save((0, 0), ChunkResult(16))
        record.save((12, 3), ChunkResult(1, ("a: why",)))
    with record.lock(JOB) as done:
        assert done == {(0, 0): ChunkResult(16), (12, 3): ChunkResult(1, ("a: why",))}
        record.commit({"images": 17})
    assert [path.name for path in (tmp_path / "out").iterdir()] == [SUMMARY]
    with pytest.raises(DataError, match="contains predictions; choose another folder"), record.lock(JOB):
        pass


def test_a_record_that_was_not_written_whole_counts_for_nothing(record, tmp_path):
    with record.lock(JOB):
        record.save((0, 0), ChunkResult(16))
        (tmp_path / "out/.unfinished/done/000001-0000.json.partial").write_text('{"ima')
    with record.lock(JOB) as done:
        assert list(done) == [(0, 0)]


def test_another_job_is_not_let_in(record):
    with record.lock(JOB):
        pass
    said = r"with other settings:\n  model: a in the folder, b now\nchoose"
    with pytest.raises(DataError, match=said), record.lock(JOB | {"model": "b"}):
        pass


def test_a_job_goes_on_under_todays_names_of_settings(record):
    with record.lock(JOB | {"settings": {"align": 32, "precision": "float32", "mode": "whole"}}):
        record.save((0, 0), ChunkResult(16))
    with record.lock(JOB | {"settings": {"size_multiple": 32, "precision": "fp32", "mode": "whole"}}) as done:
        assert list(done) == [(0, 0)]


def test_two_at_once_are_not_let_in(record):
    with record.lock(JOB), pytest.raises(DataError, match="another job is writing"), record.lock(JOB):
        pass


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_others_have_there_is_left_alone(record, tmp_path, kind):
    if kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is a file" if kind == "file" else "is not empty"), record.lock(JOB):
        pass
