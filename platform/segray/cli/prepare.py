"""`prepare`: images and masks in any known layout in, a dataset of parquet shards out."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from segray import cluster, places
from segray.classes import Classes, read_names
from segray.cli import check
from segray.cli.command import Parser, end
from segray.cli.counting import counting
from segray.cli.terminal import terminal
from segray.data import splitting
from segray.data.columns import joined
from segray.data.ingest import convert
from segray.data.labels import read_renaming
from segray.data.originals import PILLOWS_MOST_PIXELS
from segray.data.schema import LEFT_OUT, Manifest
from segray.data.shards import Bounds
from segray.data.sources import SOURCES, Found
from segray.data.sources.sample import NOT_SPLIT
from segray.errors import DataError, SegrayError, nearest
from segray.reference import factory, is_reference


def main() -> None:
    """Runs the command: to convert, or with --check to look at what was converted."""
    is_check = any(word.split("=")[0] == "--check" for word in sys.argv)
    end(check.run if is_check else _prepare)


def _prepare() -> None:
    flags, _ = _parser().parse()
    console = terminal(flags.quiet)
    if not 0 < flags.max_pixels <= PILLOWS_MOST_PIXELS:
        raise DataError(f"--max-pixels is {flags.max_pixels}; expected 1 to {PILLOWS_MOST_PIXELS}.")
    out = places.absolute("--out", flags.out)
    renaming = read_renaming(flags.map) if flags.map else None
    found = _found(flags)
    cluster.connect()
    with counting(console) as show:
        manifest = convert(
            found,
            out,
            ignore_ids=flags.ignore_id,
            renaming=renaming,
            on_bad=flags.on_bad,
            bounds=Bounds(image_pixels=flags.max_pixels),
            source={"format": flags.format, "source": flags.source or "", "command": shlex.join(sys.argv)},
            on_progress=show,
        )
    _show(console, flags.out, manifest)


def _parser() -> Parser:
    parser = Parser(
        "Converts images and masks to a dataset of parquet shards, on Ray. A conversion that was cut off goes on when\n"
        "its command is given again. With --check DIR it looks at a dataset instead: see --check DIR --help."
    )
    formats = f"of the source: {', '.join(SOURCES)}, or module:function of your own (docs/formats.md)"
    parser.add_argument("--format", required=True, metavar="NAME", help=formats)
    parser.add_argument("--source", metavar="DIR", help="folder to convert (the demo draws its own)")
    parser.add_argument("--out", required=True, metavar="DIR", help="dataset to make: a folder, or s3:// or gs://")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line, id 0 first")
    renaming = "YAML of `class: class` to merge or rename and `class: null` to drop; `*` is all others"
    parser.add_argument("--map", type=Path, metavar="FILE", help=renaming)
    ignored = "id in the source's masks that is not trained on; nor is 255, or 65535 from 256 classes on"
    parser.add_argument("--ignore-id", type=int, action="append", default=[], metavar="ID", help=ignored)
    split = "shares of train, val and test, or of train and val, e.g. 0.8/0.1/0.1, instead of the source's splits"
    parser.add_argument("--split", type=splitting.fractions, metavar="SHARES", help=split)
    group = "with --split: samples in whose id the first group of this is the same stay together, e.g. '^(.*)_'"
    parser.add_argument("--group-by", metavar="REGEX", help=group)
    bad = "what samples that cannot be used become: an error that lists all (default), or a list beside the dataset"
    parser.add_argument("--on-bad", choices=("fail", "skip"), default="fail", help=bad)
    facts = "CSV of further columns by id, such as id,camera,city, by which scores can be sliced"
    parser.add_argument("--columns", type=Path, metavar="FILE", help=facts)
    pixels = f"a larger image is not decoded (default: {Bounds.image_pixels}, most: {PILLOWS_MOST_PIXELS})"
    parser.add_argument("--max-pixels", type=int, default=Bounds.image_pixels, metavar="N", help=pixels)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _found(flags: argparse.Namespace) -> Found:
    """Returns what the source holds, in the splits and with the names that the flags ask for."""
    if flags.group_by is not None and flags.split is None:
        raise DataError("--group-by needs --split, such as 0.8/0.1/0.1.")
    found = _listed(flags.format, flags.source and places.absolute("--source", flags.source))
    if not found.samples:
        return found  # which is told with what does not fit
    if flags.split is not None:
        found = replace(found, samples=splitting.split(found.samples, flags.split, flags.group_by))
    elif found.samples[0].split == NOT_SPLIT:
        raise DataError(f"{flags.source} has no splits; give --split 0.8/0.1/0.1, perhaps with --group-by.")
    if flags.columns is not None:
        found = replace(found, samples=joined(found.samples, flags.columns))
    if flags.classes is None:
        return found
    classes = Classes.named(read_names(flags.classes))
    if found.lookup is not None and found.classes is not None and classes.num_classes != found.classes.num_classes:
        raise DataError(
            f"--classes names {classes.num_classes} classes, but format {flags.format} has "
            f"{found.classes.num_classes}; expected a name for each; merge or drop classes with --map."
        )
    _check_order(classes, found.classes)
    return replace(found, classes=classes)


def _check_order(ours: Classes, theirs: Classes | None) -> None:
    """Refuses names that the source has at other ids: --classes names ids, it does not move them."""
    known = theirs.names if theirs else ()
    moved = [name for index, name in enumerate(ours.names) if name in known and known.index(name) != index]
    if moved:
        raise DataError(
            f"--classes has {moved[0]} at id {ours.names.index(moved[0])}, where the source has {known[:10]}; it names "
            "the source's ids and does not move them; give the names in the source's order."
        )


def _listed(name: str, source: str | None) -> Found:
    """Returns what a source finds; what one of our own formats cannot read is the source's fault, not a defect."""
    find = _source(name)
    try:
        return find(source)
    except SegrayError:
        raise
    except Exception as error:
        if is_reference(name):
            raise
        raise DataError(f"{source} cannot be read as format {name} ({type(error).__name__}: {error}).") from error


def _source(name: str) -> Callable[[str | None], Found]:
    if is_reference(name):
        return factory("--format", name, DataError)
    if name not in SOURCES:
        expected = f"expected one of {', '.join(SOURCES)}, or module:function"
        raise DataError(f"--format is {name}; {expected}{nearest(name, SOURCES) or '.'}")
    return SOURCES[name]


def _show(console: Console, out: str, manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        console.print(
            f"{name:<8} {split.rows:>7} images in {len(split.shards)} shards, "
            f"mean {split.mean_width:.0f}x{split.mean_height:.0f}",
            highlight=False,
        )
    if manifest.normalised:
        console.print(f"{len(manifest.normalised)} images were re-encoded as PNG; the manifest lists them.")
    if manifest.left_out:
        console.print(f"{manifest.left_out} samples were left out; {out}/{LEFT_OUT} lists them and why.")
    console.print(f"dataset  {out}  {manifest.classes.num_classes} classes, digest {manifest.digest}", highlight=False)
    console.print(f"next     python pipelines/prepare.py --check {shlex.quote(out)}", highlight=False)
    console.print(f"         python pipelines/train.py --data {shlex.quote(out)}", highlight=False)
