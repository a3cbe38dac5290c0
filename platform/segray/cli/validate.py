"""Command `prepare --check`: reports all errors of a dataset and writes a page that describes it."""

from argparse import Namespace
from pathlib import Path

from segray.cli.command import make_console
from segray.cli.progress import progress_reporter
from segray.cluster.connect import connect
from segray.config import Config, paths
from segray.core.errors import DataError, format_list
from segray.core.numbers import MIB
from segray.data.storage import strip_credentials
from segray.data.validate import contact_sheet, report
from segray.data.validate.dataset import validate_dataset

PAGE, SHEET = "index.html", "contact-sheet.png"


def run(flags: Namespace, _config: Config) -> None:
    """Validates a dataset, writes the page and prints the result.

    Raises:
        DataError: the dataset has an error, or the output folder is in the dataset.
    """
    console = make_console(flags.quiet)
    root = paths.absolute_path("--check", flags.check)
    dataset = Path(strip_credentials(root)).name
    out = Path(paths.absolute_path("--out", flags.out or f"{dataset}-check"))
    if out.is_relative_to(root):
        raise DataError(f"--out {out} is in the dataset, which may only contain its own files; choose another folder.")
    connect()
    with progress_reporter(console) as show:
        result = validate_dataset(root, show)
    for name, split in result.splits.items():
        console.print(f"{name:<8} {split.rows:>7} images, {split.bytes / MIB:.1f} MiB")
    if result.warnings:
        console.print(f"{len(result.warnings)} warnings:{format_list(result.warnings)}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        contact_sheet.save_contact_sheet(root, result.manifest, out / SHEET)
    except Exception as error:  # the dataset may be damaged in any way; its errors are still reported
        console.print(f"the contact sheet cannot be created ({type(error).__name__}: {error})")
    (out / PAGE).write_text(report.render_report(dataset, result, SHEET), encoding="utf-8", errors="backslashreplace")
    console.print(f"page     {out / PAGE}")
    if result.errors:
        raise DataError(f"{strip_credentials(root)} has {len(result.errors)} errors:{format_list(result.errors)}")
    console.print("no errors")
