"""Writes an evaluation as one HTML page and its figures as PNGs."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from segray.core.errors import DataError
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.report import figures
from segray.evaluation.report.examples import segment_examples
from segray.evaluation.report.page import Baseline, render_evaluation_page
from segray.models import checkpoint

PAGE = "index.html"
GENERATOR = '<meta name="generator" content="segray">'


def prepare_output_dir(out: Path) -> None:
    """Creates the folder of a report. The folder may contain an earlier report.

    Raises:
        DataError: the folder contains other files, or it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = out / PAGE
        is_report = page.exists() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:1000]
        if any(out.iterdir()) and not is_report:
            raise DataError(f"report {out} is not empty; choose another folder.")
        page.write_text(GENERATOR)  # detects a read-only or full file system early
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error


@dataclass(frozen=True)
class ReportFiles:
    """The HTML page and its figures as PNGs."""

    page: Path
    figures: tuple[Path, ...]


def write_report(
    model: str, evaluation: Evaluation, folder: Path, out: Path, baseline: Baseline | None = None
) -> ReportFiles:
    """Writes the page of an evaluation and its figures to a folder.

    Args:
        model: name of the evaluated model, as the user passed it.
        evaluation: evaluation with counts and results.
        folder: checkpoint folder of the model.
        out: destination folder, created if missing.
        baseline: comparison with another model, if there is one.

    Raises:
        DataError: the report cannot be written.
    """
    source = SplitReader(evaluation.root, read_manifest(evaluation.root).split(evaluation.split))
    config = checkpoint.load_config(folder).model_copy(update={"eval": evaluation.settings})
    examples = segment_examples(folder, config, source, evaluation.results.images)
    metadata = {
        "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "python": platform.python_version(),
        **checkpoint.library_versions(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(
            render_evaluation_page(model, evaluation, examples, metadata, baseline),
            encoding="utf-8",
            errors="backslashreplace",
        )
        return ReportFiles(out / PAGE, figures.save_figures(evaluation, examples, out))
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error
