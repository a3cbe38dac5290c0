"""Command `prepare`: converts images and masks in a supported layout to a dataset of Parquet shards."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from segray.cli.parser import make_console
from segray.cli.progress import progress_reporter
from segray.cluster.connect import connect
from segray.config import Config, paths
from segray.core.classes import Classes, read_class_names
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError, SegrayError, did_you_mean
from segray.core.imports import import_callable, is_import_path
from segray.core.parsing import summarize_error
from segray.data.convert import splits
from segray.data.convert.convert import convert_dataset
from segray.data.convert.labels import read_class_map
from segray.data.convert.metadata import add_columns
from segray.data.convert.shards import ShardLimits
from segray.data.manifest import SKIPPED_LIST, Manifest
from segray.data.normalize import PILLOW_MAX_PIXELS
from segray.data.sources.formats import SOURCES
from segray.data.sources.sample import UNSPLIT, SourceListing


def run(flags: argparse.Namespace, _config: Config) -> None:
    """Converts the source to a dataset."""
    console = make_console(flags.quiet)
    if not 0 < flags.max_pixels <= PILLOW_MAX_PIXELS:
        raise DataError(f"--max-pixels is {flags.max_pixels}; expected 1 to {PILLOW_MAX_PIXELS}.")
    out = paths.absolute_path("--out", flags.out)
    renaming = read_class_map(flags.map) if flags.map else None
    listing = _list_samples(flags)
    connect()
    with progress_reporter(console) as show:
        manifest = convert_dataset(
            listing,
            out,
            ignore_ids=flags.ignore_id,
            renaming=renaming,
            on_bad=flags.on_bad,
            bounds=ShardLimits(image_pixels=flags.max_pixels),
            source={"format": flags.format, "source": flags.source or "", "command": shlex.join(sys.argv)},
            on_progress=show,
        )
    _print_result(console, flags.out, manifest)


def _list_samples(flags: argparse.Namespace) -> SourceListing:
    """Returns the listing of the source with the splits, columns and class names given by the flags."""
    if flags.group_by is not None and flags.split is None:
        raise DataError("--group-by requires --split, e.g. --split 0.8/0.1/0.1.")
    listing = _read_source(flags.format, flags.source and paths.absolute_path("--source", flags.source))
    if not listing.samples:
        return listing  # the conversion reports the error
    if flags.split is not None:
        listing = replace(listing, samples=splits.assign_splits(listing.samples, flags.split, flags.group_by))
    elif listing.samples[0].split == UNSPLIT:
        raise DataError(f"{flags.source} has no splits; add --split 0.8/0.1/0.1, and --group-by for dependent images.")
    if flags.columns is not None:
        listing = replace(listing, samples=add_columns(listing.samples, flags.columns))
    if flags.classes is None:
        return listing
    classes = Classes.from_names(read_class_names(flags.classes))
    if (
        listing.lookup is not None
        and listing.classes is not None
        and classes.num_classes != listing.classes.num_classes
    ):
        raise DataError(
            f"--classes names {classes.num_classes} classes, but format {flags.format} has "
            f"{listing.classes.num_classes}; expected one name per class; merge or drop classes with --map."
        )
    _check_order(classes, listing.classes)
    return replace(listing, classes=classes)


def _check_order(classes: Classes, source_classes: Classes | None) -> None:
    """Rejects names that the source has at other ids: --classes names ids and does not reorder them."""
    names = source_classes.names if source_classes else ()
    moved = [name for index, name in enumerate(classes.names) if name in names and names.index(name) != index]
    if moved:
        raise DataError(
            f"--classes has {moved[0]} at id {classes.names.index(moved[0])}, and the source at id "
            f"{names.index(moved[0])}; --classes does not reorder ids; list the names in the order of the source: "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
        )


def _read_source(name: str, source: str | None) -> SourceListing:
    """Returns the listing of a source. Any error of a built-in format is reported as a DataError of the source."""
    list_samples = _find_source(name)
    try:
        return list_samples(source)
    except SegrayError:
        raise
    except Exception as error:
        if is_import_path(name) or is_out_of_memory(error):
            raise
        raise DataError(
            f"{source} cannot be read as format {name} ({type(error).__name__}: {summarize_error(error)})."
        ) from error


def _find_source(name: str) -> Callable[[str | None], SourceListing]:
    if is_import_path(name):
        return import_callable("--format", name, DataError)
    if name not in SOURCES:
        expected = f"expected one of {', '.join(SOURCES)}, or module:function"
        raise DataError(f"--format is {name}; {expected}{did_you_mean(name, SOURCES) or '.'}")
    return SOURCES[name]


def _print_result(console: Console, out: str, manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        console.print(
            f"{name:<8} {split.rows:>7} images in {len(split.shards)} shards, "
            f"mean {split.mean_width:.0f}x{split.mean_height:.0f}",
            highlight=False,
        )
    if manifest.normalised:
        console.print(f"{len(manifest.normalised)} images were re-encoded as PNG; the manifest lists them.")
    if manifest.left_out:
        console.print(f"{manifest.left_out} samples were skipped; {out}/{SKIPPED_LIST} lists them and the reasons.")
    console.print(f"dataset  {out}  {manifest.classes.num_classes} classes, digest {manifest.digest}", highlight=False)
    console.print(f"next     python pipelines/prepare.py --check {shlex.quote(out)}", highlight=False)
    console.print(f"         python pipelines/train.py --data {shlex.quote(out)}", highlight=False)
