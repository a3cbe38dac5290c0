"""Command `prepare --check`: reports all errors of a dataset and writes a page that describes it."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from segray.cli.parser import make_console
from segray.cli.progress import progress_reporter
from segray.cluster.connect import connect
from segray.config import Config, paths
from segray.core.errors import DataError, format_list
from segray.core.numbers import MIB
from segray.core.report_folder import PAGE, check_report_folder, stage_report
from segray.data.manifest import Manifest
from segray.data.storage import strip_credentials
from segray.data.validate import contact_sheet, report
from segray.data.validate.dataset import validate_dataset

SHEET = "contact-sheet.png"


def run(flags: Namespace, _config: Config) -> None:
    """Validates a dataset, writes the page and prints the result.

    Raises:
        DataError: the dataset has an error, or the output folder is in the dataset or contains other files.
    """
    console = make_console(flags.quiet)
    root = paths.absolute_path("--check", flags.check)
    dataset = Path(strip_credentials(root)).name
    out = Path(paths.absolute_path("--out", flags.out or f"{dataset}-check"))
    if out.is_relative_to(root):
        raise DataError(f"--out {out} is in the dataset, which may only contain its own files; choose another folder.")
    check_report_folder(out)
    connect()
    with progress_reporter(console) as show:
        result = validate_dataset(root, show)
    for name, split in result.splits.items():
        console.print(f"{name:<8} {split.rows:>7} images, {split.bytes / MIB:.1f} MiB")
    if result.warnings:
        console.print(f"{len(result.warnings)} warnings:{format_list(result.warnings)}")
    with stage_report(out) as staging:
        sheet = _draw_contact_sheet(console, root, result.manifest, staging / SHEET)
        page = report.render_report(dataset, result, sheet)
        (staging / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
    console.print(f"page     {out / PAGE}")
    if result.errors:
        raise DataError(f"{strip_credentials(root)} has {len(result.errors)} errors:{format_list(result.errors)}")
    console.print("no errors")


def _draw_contact_sheet(console: Console, root: str, manifest: Manifest, file: Path) -> str | None:
    """Writes the contact sheet and returns its name, or `None` if the dataset is too damaged for one."""
    try:
        contact_sheet.save_contact_sheet(root, manifest, file)
    except Exception as error:  # the dataset may be damaged in any way; its errors are still reported
        console.print(f"the contact sheet cannot be created ({type(error).__name__}: {error})")
        return None
    return file.name
