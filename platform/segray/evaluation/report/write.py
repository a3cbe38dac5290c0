"""Writes an evaluation as one HTML page and its figures as PNGs."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from segray.core.report_folder import PAGE, stage_report
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.report import figures
from segray.evaluation.report.examples import segment_examples
from segray.evaluation.report.page import Baseline, render_evaluation_page
from segray.models import checkpoint


@dataclass(frozen=True)
class ReportFiles:
    """The HTML page and its figures as PNGs."""

    page: Path
    figures: tuple[Path, ...]


def write_report(
    model: str, evaluation: Evaluation, folder: Path, out: Path, baseline: Baseline | None = None
) -> ReportFiles:
    """Writes the page of an evaluation and its figures to a folder. An earlier report stays until all are complete.

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
    page = render_evaluation_page(model, evaluation, examples, metadata, baseline)
    with stage_report(out) as staging:
        (staging / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
        plotted = figures.save_figures(evaluation, examples, staging)
    return ReportFiles(out / PAGE, tuple(out / figure.name for figure in plotted))
