"""`prepare --check`: everything that is wrong with a dataset, and a page that shows what it holds."""

from pathlib import Path

from segray import cluster, places
from segray.cli.command import Parser
from segray.cli.counting import counting
from segray.cli.terminal import terminal
from segray.data.check import check, page, sheet
from segray.data.schema import plain
from segray.errors import DataError, listing

PAGE, SHEET = "index.html", "contact-sheet.png"


def run() -> None:
    """Checks, writes the page and shows what was found.

    Raises:
        DataError: there is a fault.
    """
    parser = Parser("Holds a dataset against itself and shows what is in it. Ends with 2 where there is a fault.")
    parser.add_argument("--check", required=True, metavar="DIR", help="dataset: a folder, or s3:// or gs://")
    parser.add_argument("--out", metavar="DIR", help="folder of the page and the contact sheet (default: NAME-check)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    flags, _ = parser.parse()
    console = terminal(flags.quiet)
    root = places.absolute("--check", flags.check)
    name = Path(plain(root)).name
    out = Path(places.absolute("--out", flags.out or f"{name}-check"))
    if out.is_relative_to(root):
        raise DataError(f"--out {out} lies in the dataset, which holds nothing else; choose another folder.")
    cluster.connect()
    with counting(console) as show:
        checked = check(root, show)
    for split, found in checked.splits.items():
        console.print(f"{split:<8} {found.rows:>7} images, {found.bytes / 2**20:.1f} MiB")
    if checked.doubts:
        console.print(f"{len(checked.doubts)} doubts:{listing(checked.doubts)}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        sheet.save(root, checked.manifest, out / SHEET)
    except Exception as error:  # of a dataset damaged in any way; what is wrong with it is told all the same
        console.print(f"the contact sheet cannot be made ({type(error).__name__}: {error})")
    (out / PAGE).write_text(page.html(name, checked, SHEET), encoding="utf-8", errors="backslashreplace")
    console.print(f"page     {out / PAGE}")
    if checked.faults:
        raise DataError(f"{plain(root)} has {len(checked.faults)} faults:{listing(checked.faults)}")
    console.print("no fault")
