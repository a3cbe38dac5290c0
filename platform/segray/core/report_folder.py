"""Folder of a report: an earlier report stays whole until the new one is complete."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.core.errors import DataError

PAGE = "index.html"
GENERATOR = '<meta name="generator" content="segray">'
"""Element that every page of segray contains near its start."""
STAGING_PREFIX = ".segray-report-"


def check_report_folder(out: Path) -> None:
    """Checks that a report can be written to a folder, and creates the folder. An earlier report is not changed.

    Raises:
        DataError: the folder contains other files, or it cannot be written.
    """
    try:
        _remove_staging(out)
        page = out / PAGE
        is_report = page.exists() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:1000]
        if out.exists() and any(out.iterdir()) and not is_report:
            raise DataError(f"report {out} is not empty; choose another folder.")
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error
    with stage_report(out) as staging:
        (staging / PAGE).write_text(GENERATOR)  # detects a read-only or full file system early
        (staging / PAGE).unlink()


@contextmanager
def stage_report(out: Path) -> Iterator[Path]:
    """Yields an empty folder for the files of a report, and moves them to `out` if the block succeeds.

    The page is moved last, so it never refers to files that are not there. An error leaves an earlier report as it is.
    The yielded folder lies in `out`: the move of a file within a file system is atomic, and `out` itself may be a mount
    point, which cannot be replaced.

    Raises:
        DataError: the report cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=out))
        try:
            yield staging
            for file in sorted(staging.iterdir(), key=lambda file: file.name == PAGE):
                file.replace(out / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error


def _remove_staging(out: Path) -> None:
    """Removes what a killed process left."""
    for folder in out.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(folder)
