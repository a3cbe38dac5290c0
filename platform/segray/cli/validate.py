"""Command `prepare --check`: reports all errors of a dataset and writes a page that describes it."""

from pathlib import Path

from segray.cli.command import CommandParser
from segray.cli.console import make_console
from segray.cli.progress import progress_reporter
from segray.cluster.connect import connect
from segray.config import paths
from segray.core.errors import DataError, format_list
from segray.data.storage import strip_credentials
from segray.data.validate import contact_sheet, report
from segray.data.validate.dataset import validate_dataset

PAGE, SHEET = "index.html", "contact-sheet.png"


def run_validation() -> None:
    """Validates a dataset, writes the page and prints the findings.

    Raises:
        DataError: the dataset has an error, or the output folder lies in the dataset.
    """
    parser = CommandParser(
        "Holds a dataset against itself and shows what is in it. Ends with 2 where there is a fault."
    )
    parser.add_argument("--check", required=True, metavar="DIR", help="dataset: a folder, or s3:// or gs://")
    parser.add_argument("--out", metavar="DIR", help="folder of the page and the contact sheet (default: NAME-check)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    flags, _ = parser.parse()
    console = make_console(flags.quiet)
    root = paths.absolute_path("--check", flags.check)
    name = Path(strip_credentials(root)).name
    out = Path(paths.absolute_path("--out", flags.out or f"{name}-check"))
    if out.is_relative_to(root):
        raise DataError(f"--out {out} lies in the dataset, which holds nothing else; choose another folder.")
    connect()
    with progress_reporter(console) as show:
        checked = validate_dataset(root, show)
    for split, found in checked.splits.items():
        console.print(f"{split:<8} {found.rows:>7} images, {found.bytes / 2**20:.1f} MiB")
    if checked.warnings:
        console.print(f"{len(checked.warnings)} doubts:{format_list(checked.warnings)}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        contact_sheet.save_contact_sheet(root, checked.manifest, out / SHEET)
    except Exception as error:  # the dataset may be damaged in any way; its errors are still reported
        console.print(f"the contact sheet cannot be made ({type(error).__name__}: {error})")
    (out / PAGE).write_text(report.render_report(name, checked, SHEET), encoding="utf-8", errors="backslashreplace")
    console.print(f"page     {out / PAGE}")
    if checked.errors:
        raise DataError(f"{strip_credentials(root)} has {len(checked.errors)} faults:{format_list(checked.errors)}")
    console.print("no fault")
