"""`prepare`: images and masks in any known layout in, a dataset of parquet shards out."""

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segray import cluster, places
from segray.classes import Classes, read_names
from segray.cli.command import Parser, end
from segray.cli.terminal import terminal
from segray.data.ingest import convert
from segray.data.schema import Manifest
from segray.data.sources import SOURCES


def main() -> None:
    """Runs the command."""
    end(_prepare)


def _prepare() -> None:
    parser = Parser("Converts images and masks to a dataset of parquet shards, with Ray Data.")
    parser.add_argument("--format", required=True, choices=SOURCES, help="layout of the source")
    parser.add_argument("--source", metavar="DIR", help="folder to convert (the demo draws its own)")
    parser.add_argument("--out", required=True, metavar="DIR", help="dataset folder to make")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line, id 0 first")
    ignored = "id in the source's masks that is not trained on; nor is 255, or 65535 from 256 classes on"
    parser.add_argument("--ignore-id", type=int, action="append", default=[], metavar="ID", help=ignored)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    flags, _ = parser.parse()
    console = terminal(flags.quiet)
    out = places.absolute("--out", flags.out)
    found = SOURCES[flags.format](flags.source and places.absolute("--source", flags.source))
    classes = Classes.named(read_names(flags.classes)) if flags.classes else found.classes
    cluster.connect()
    with _progress(console) as progress:
        task = progress.add_task("starting", total=len(found.samples))
        manifest = convert(
            found.samples,
            classes,
            out,
            ignore_ids=flags.ignore_id,
            source={"format": flags.format, "source": flags.source or "", "command": shlex.join(sys.argv)},
            on_progress=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    _show(console, flags.out, manifest)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("images, left"),
        TimeRemainingColumn(),
        console=console,
    )


def _show(console: Console, out: str, manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        console.print(
            f"{name:<8} {split.rows:>7} images in {len(split.shards)} shards, "
            f"mean {split.mean_width:.0f}x{split.mean_height:.0f}",
            highlight=False,
        )
    if manifest.normalised:
        console.print(f"{len(manifest.normalised)} images were re-encoded as PNG; the manifest lists them.")
    console.print(f"dataset  {out}  {manifest.classes.num_classes} classes, digest {manifest.digest}", highlight=False)
    console.print(f"next     python pipelines/train.py --data {shlex.quote(out)}", highlight=False)
