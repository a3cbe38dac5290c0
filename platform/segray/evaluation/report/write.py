"""An evaluation as one HTML page for a person, and its figures as PNGs."""

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
    """Makes the folder of a report, which may hold another one.

    Raises:
        DataError: it holds something else, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = out / PAGE
        is_ours = page.exists() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:1000]
        if any(out.iterdir()) and not is_ours:
            raise DataError(f"report {out} is not empty; choose another folder.")
        page.write_text(GENERATOR)  # so that a folder that cannot be written, or is full, is known now
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error


@dataclass(frozen=True)
class ReportFiles:
    """The page, and its figures as PNGs."""

    page: Path
    figures: tuple[Path, ...]


def write_report(
    model: str, evaluation: Evaluation, folder: Path, out: Path, against: Baseline | None = None
) -> ReportFiles:
    """Writes the page of an evaluation, and its figures, into a folder.

    Args:
        model: what was evaluated, as it was named.
        evaluation: its counts and what they say.
        folder: checkpoint folder of the model.
        out: folder to write into; it is made.
        against: what it gained over another model, if it was compared.

    Raises:
        DataError: it cannot be written.
    """
    source = SplitReader(evaluation.root, read_manifest(evaluation.root).split(evaluation.split))
    config = checkpoint.load_config(folder).model_copy(update={"eval": evaluation.settings})
    shown = segment_examples(folder, config, source, evaluation.results.images)
    about = {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "python": platform.python_version(),
        **checkpoint.library_versions(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(
            render_evaluation_page(model, evaluation, shown, about, against),
            encoding="utf-8",
            errors="backslashreplace",
        )
        return ReportFiles(out / PAGE, figures.save_figures(evaluation, shown, out))
    except OSError as error:
        raise DataError(f"report {out} cannot be written ({error}).") from error
