"""An earlier report stays whole until the new one is complete, and nobody else's file is touched."""

import pytest

from segray.core.errors import DataError
from segray.core.report_folder import GENERATOR, PAGE, STAGING_PREFIX, check_report_folder, stage_report


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def report(tmp_path):
    out = tmp_path / "a/report"
    with stage_report(out) as staging:
        (staging / PAGE).write_text(f"{GENERATOR} old")
        (staging / "figure.png").write_text("old")
    return out


def test_a_check_changes_nothing_and_removes_what_a_killed_process_left(report):
    before = files(report)
    (report / f"{STAGING_PREFIX}x").mkdir()
    (report / f"{STAGING_PREFIX}x/part.png").write_text("half")
    check_report_folder(report)
    assert files(report) == before == {PAGE: f"{GENERATOR} old", "figure.png": "old"}
    (report.parent / f"new/{STAGING_PREFIX}x").mkdir(parents=True)
    check_report_folder(report.parent / "new")
    assert files(report.parent / "new") == {}


def write_and_raise(report, error):
    with stage_report(report) as staging:
        (staging / PAGE).write_text("new")
        raise error


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("a figure"), ValueError, "a figure"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(28, "No space left"), DataError, r"report \S+ cannot be written \(\[Errno 28\]"),
    ],
)
def test_an_error_leaves_the_earlier_report(report, error, expected, message):
    before = files(report)
    with pytest.raises(expected, match=message):
        write_and_raise(report, error)
    assert files(report) == before


def test_a_new_report_replaces_the_earlier_one_and_its_page_comes_last(report, monkeypatch):
    moved, replace = [], type(report).replace
    monkeypatch.setattr(type(report), "replace", lambda path, to: (moved.append(path.name), replace(path, to))[1])
    with stage_report(report) as staging:
        (staging / PAGE).write_text("new")
        (staging / "figure.png").write_text("new")
        (staging / "zebra.png").write_text("new")
    assert moved == ["figure.png", "zebra.png", PAGE]
    assert files(report) == {PAGE: "new", "figure.png": "new", "zebra.png": "new"}


@pytest.mark.parametrize("page", [None, "<html>my own page</html>"])
def test_a_folder_with_other_files_is_refused(tmp_path, page):
    (tmp_path / "notes.txt").write_text("mine")
    if page:
        (tmp_path / PAGE).write_text(page)
    before = files(tmp_path)
    with pytest.raises(DataError, match="is not empty; choose another folder"):
        check_report_folder(tmp_path)
    assert files(tmp_path) == before
