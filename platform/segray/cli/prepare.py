"""Command `prepare`: converts images and masks in a supported layout to a dataset of Parquet shards."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from segray.cli import validate
from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cli.progress import progress_reporter
from segray.cluster.connect import connect
from segray.config import paths
from segray.core.classes import Classes, read_class_names
from segray.core.errors import DataError, SegrayError, did_you_mean
from segray.core.imports import import_callable, is_import_path
from segray.data.convert import splits
from segray.data.convert.convert import convert_dataset
from segray.data.convert.labels import read_class_map
from segray.data.convert.metadata import add_columns
from segray.data.convert.shards import ShardLimits
from segray.data.manifest import SKIPPED_LIST, Manifest
from segray.data.normalize import PILLOW_MAX_PIXELS
from segray.data.sources.formats import SOURCES
from segray.data.sources.sample import UNSPLIT, SourceListing


def main() -> None:
    """Runs the command, which converts a dataset, or validates one with --check."""
    is_check = any(word.split("=")[0] == "--check" for word in sys.argv)
    run_command(validate.run_validation if is_check else _prepare)


def _prepare() -> None:
    flags, _ = _parser().parse()
    console = make_console(flags.quiet)
    if not 0 < flags.max_pixels <= PILLOW_MAX_PIXELS:
        raise DataError(f"--max-pixels is {flags.max_pixels}; expected 1 to {PILLOW_MAX_PIXELS}.")
    out = paths.absolute_path("--out", flags.out)
    renaming = read_class_map(flags.map) if flags.map else None
    found = _found(flags)
    connect()
    with progress_reporter(console) as show:
        manifest = convert_dataset(
            found,
            out,
            ignore_ids=flags.ignore_id,
            renaming=renaming,
            on_bad=flags.on_bad,
            bounds=ShardLimits(image_pixels=flags.max_pixels),
            source={"format": flags.format, "source": flags.source or "", "command": shlex.join(sys.argv)},
            on_progress=show,
        )
    _show(console, flags.out, manifest)


def _parser() -> CommandParser:
    parser = CommandParser(
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
    parser.add_argument("--split", type=splits.parse_fractions, metavar="SHARES", help=split)
    group = "with --split: samples in whose id the first group of this is the same stay together, e.g. '^(.*)_'"
    parser.add_argument("--group-by", metavar="REGEX", help=group)
    bad = "what samples that cannot be used become: an error that lists all (default), or a list beside the dataset"
    parser.add_argument("--on-bad", choices=("fail", "skip"), default="fail", help=bad)
    facts = "CSV of further columns by id, such as id,camera,city, by which scores can be sliced"
    parser.add_argument("--columns", type=Path, metavar="FILE", help=facts)
    pixels = f"a larger image is not decoded (default: {ShardLimits.image_pixels}, most: {PILLOW_MAX_PIXELS})"
    parser.add_argument("--max-pixels", type=int, default=ShardLimits.image_pixels, metavar="N", help=pixels)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _found(flags: argparse.Namespace) -> SourceListing:
    """Returns the listing of the source with the splits, columns and class names given by the flags."""
    if flags.group_by is not None and flags.split is None:
        raise DataError("--group-by needs --split, such as 0.8/0.1/0.1.")
    found = _listed(flags.format, flags.source and paths.absolute_path("--source", flags.source))
    if not found.samples:
        return found  # the conversion reports the error
    if flags.split is not None:
        found = replace(found, samples=splits.assign_splits(found.samples, flags.split, flags.group_by))
    elif found.samples[0].split == UNSPLIT:
        raise DataError(f"{flags.source} has no splits; give --split 0.8/0.1/0.1, perhaps with --group-by.")
    if flags.columns is not None:
        found = replace(found, samples=add_columns(found.samples, flags.columns))
    if flags.classes is None:
        return found
    classes = Classes.from_names(read_class_names(flags.classes))
    if found.lookup is not None and found.classes is not None and classes.num_classes != found.classes.num_classes:
        raise DataError(
            f"--classes names {classes.num_classes} classes, but format {flags.format} has "
            f"{found.classes.num_classes}; expected a name for each; merge or drop classes with --map."
        )
    _check_order(classes, found.classes)
    return replace(found, classes=classes)


def _check_order(ours: Classes, theirs: Classes | None) -> None:
    """Rejects names that the source has at other ids: --classes names ids and does not reorder them."""
    known = theirs.names if theirs else ()
    moved = [name for index, name in enumerate(ours.names) if name in known and known.index(name) != index]
    if moved:
        raise DataError(
            f"--classes has {moved[0]} at id {ours.names.index(moved[0])}, where the source has {known[:10]}; it names "
            "the source's ids and does not move them; give the names in the source's order."
        )


def _listed(name: str, source: str | None) -> SourceListing:
    """Returns the listing of a source. Any error of a built-in format is reported as a DataError of the source."""
    find = _source(name)
    try:
        return find(source)
    except SegrayError:
        raise
    except Exception as error:
        if is_import_path(name):
            raise
        raise DataError(f"{source} cannot be read as format {name} ({type(error).__name__}: {error}).") from error


def _source(name: str) -> Callable[[str | None], SourceListing]:
    if is_import_path(name):
        return import_callable("--format", name, DataError)
    if name not in SOURCES:
        expected = f"expected one of {', '.join(SOURCES)}, or module:function"
        raise DataError(f"--format is {name}; {expected}{did_you_mean(name, SOURCES) or '.'}")
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
        console.print(f"{manifest.left_out} samples were left out; {out}/{SKIPPED_LIST} lists them and why.")
    console.print(f"dataset  {out}  {manifest.classes.num_classes} classes, digest {manifest.digest}", highlight=False)
    console.print(f"next     python pipelines/prepare.py --check {shlex.quote(out)}", highlight=False)
    console.print(f"         python pipelines/train.py --data {shlex.quote(out)}", highlight=False)
