"""Consistency checks of a dataset: shards, rows, counts and duplicates."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from pyarrow.fs import FileSelector, FileType

from segray.data.manifest import FORMAT_VERSION, MANIFEST, SKIPPED_LIST, Manifest, load_manifest_unverified
from segray.data.ray_map import map_on_cluster
from segray.data.storage import UNFINISHED, display_path, filesystem, strip_credentials
from segray.data.validate.shard import ShardFindings, ShardTask, inspect_shard

MIN_IMAGES = 3
MIN_SHARE = 1e-5
"""Smallest share of training images, or of their pixels, below which a class is reported as near-empty."""

OnProgress = Callable[[str, int, int], None]


@dataclass
class SplitStatistics:
    """Statistics of a split, recomputed from its rows.

    Attributes:
        rows: number of readable rows.
        bytes: total size of the shards.
        class_pixels, class_images: number of pixels and of images of each class, (K,).
        ignored: number of ignored pixels.
        sizes: number of images of each (width, height).
    """

    rows: int = 0
    bytes: int = 0
    class_pixels: list[int] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)


@dataclass
class ValidationReport:
    """Result of a validation.

    Attributes:
        manifest: manifest of the dataset.
        errors: one line per error.
        warnings: one line per finding that may be intended.
        splits: recomputed statistics of each split, by name.
    """

    manifest: Manifest
    errors: list[str]
    warnings: list[str]
    splits: dict[str, SplitStatistics]


def validate_dataset(root: str, on_progress: OnProgress = lambda stage, done, total: None) -> ValidationReport:
    """Validates a dataset in one pass over its rows on the connected Ray cluster and reports all findings.

    Args:
        root: folder or URI.
        on_progress: callback that receives the name of the current stage, the number of rows done and the total number
            of rows.

    Raises:
        DataError: the manifest does not exist or cannot be read.
    """
    manifest = load_manifest_unverified(root)
    tasks = [
        ShardTask(root, name, shard, manifest.classes.num_classes, manifest.classes.ignore_id)
        for name, split in manifest.splits.items()
        for shard in split.shards
    ]
    findings: dict[int, ShardFindings] = {}
    rows_done, rows = 0, sum(split.rows for split in manifest.splits.values())
    for index, shard_findings in map_on_cluster(inspect_shard, tasks):
        findings[index] = shard_findings
        rows_done += tasks[index].shard.rows
        on_progress("validating", rows_done, rows)
    by_split = defaultdict[str, list[ShardFindings]](list)
    for index, task in enumerate(tasks):
        by_split[task.split].append(findings[index])
    splits = {name: _statistics(manifest, name, by_split[name]) for name in manifest.splits}
    in_order = [findings[index] for index in range(len(tasks))]
    image_rows = [row for shard in in_order for row in shard.rows]
    duplicates, leaks = _duplicate_images(image_rows)
    errors = [
        *_manifest_errors(root, manifest, splits),
        *_stray_files(root, manifest),
        *_list_errors(root, manifest, {row_id for row_id, _ in image_rows}),
        *(error for shard in in_order for error in shard.errors),
        *_duplicate_ids(image_rows),
        *leaks,
    ]
    return ValidationReport(manifest, errors, [*duplicates, *_rare_classes(manifest, splits)], splits)


def _statistics(manifest: Manifest, name: str, shards: list[ShardFindings]) -> SplitStatistics:
    shape = (0, manifest.classes.num_classes)
    return SplitStatistics(
        rows=sum(len(shard.rows) for shard in shards),
        bytes=sum(shard.bytes for shard in manifest.splits[name].shards),
        class_pixels=np.sum([shard.class_pixels for shard in shards] or np.zeros(shape, int), axis=0).tolist(),
        class_images=np.sum([shard.class_images for shard in shards] or np.zeros(shape, int), axis=0).tolist(),
        ignored=sum(shard.ignored for shard in shards),
        sizes=sum((shard.sizes for shard in shards), Counter[tuple[int, int]]()),
    )


def _manifest_errors(root: str, manifest: Manifest, splits: dict[str, SplitStatistics]) -> Iterator[str]:
    name = display_path(root, MANIFEST)
    if manifest.format != FORMAT_VERSION:
        yield f"{name}: format {manifest.format}; expected {FORMAT_VERSION}"
    if manifest.digest != manifest.content_digest():
        yield f"{name}: does not match its digest"
    if not splits:
        yield f"{name}: no split"
    for split, actual in splits.items():
        stated = manifest.splits[split]
        for shard in stated.shards:
            if shard.rows != sum(shard.row_groups):
                yield f"{name}: {shard.path} has {shard.rows} rows, but row groups of {shard.row_groups}"
        if actual.rows != stated.rows:
            continue
        if list(stated.class_pixels) != actual.class_pixels:
            stated_pixels = list(stated.class_pixels)
            yield f"{name}: split {split} has class_pixels {stated_pixels}; its masks have {actual.class_pixels}"
        if actual.sizes:
            means = [sum(size[axis] * count for size, count in actual.sizes.items()) / actual.rows for axis in (0, 1)]
            if not np.allclose(means, [stated.mean_width, stated.mean_height]):
                yield (
                    f"{name}: split {split} has a mean size of {stated.mean_width:.1f}x{stated.mean_height:.1f}; its "
                    f"images have {means[0]:.1f}x{means[1]:.1f}"
                )


def _list_errors(root: str, manifest: Manifest, row_ids: set[str]) -> Iterator[str]:
    """Yields the inconsistencies in the lists of skipped and re-encoded images."""
    fs, path = filesystem(root)
    lines, kind = 0, fs.get_file_info(f"{path}/{SKIPPED_LIST}").type
    if kind not in {FileType.File, FileType.NotFound}:  # reading a pipe or a device may never end
        yield f"{display_path(root, SKIPPED_LIST)}: not a regular file"
        return
    if kind == FileType.File:
        with fs.open_input_stream(f"{path}/{SKIPPED_LIST}") as file:
            lines = file.read().count(b"\n")
    if lines != manifest.left_out:
        path = display_path(root, SKIPPED_LIST)
        yield f"{path}: {lines} lines; expected {manifest.left_out}, as in the manifest"
    for line in manifest.normalised:
        name = line.rsplit(": ", 1)[0]
        if name not in row_ids:
            yield f"{display_path(root, MANIFEST)}: {name} is listed as re-encoded, but no row has this id"


def _stray_files(root: str, manifest: Manifest) -> Iterator[str]:
    """Yields the files in the dataset folder that do not belong to the dataset."""
    fs, path = filesystem(root)
    expected = {shard.path for split in manifest.splits.values() for shard in split.shards} | {MANIFEST, SKIPPED_LIST}
    if fs.get_file_info(f"{path}/{UNFINISHED}").type != FileType.NotFound:
        yield f"{display_path(root, UNFINISHED)}: state of an unfinished conversion; remove it"
    for info in fs.get_file_info(FileSelector(path, recursive=True)):
        try:
            relative = info.path.removeprefix(path).strip("/")
        except UnicodeDecodeError:
            yield f"{strip_credentials(root)}: a file whose name is not valid UTF-8; remove it"
            continue
        if info.type == FileType.File and relative not in expected and not relative.startswith(f"{UNFINISHED}/"):
            yield f"{display_path(root, relative)}: not part of the dataset; remove it"


def _duplicate_ids(rows: list[tuple[str, str]]) -> Iterator[str]:
    for name, count in Counter(name for name, _ in rows).items():
        if count > 1:
            yield f"{name}: {count} rows have this id; expected one"


def _duplicate_images(rows: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Returns one line for each image that is repeated within a split, and one for each image in several splits."""
    ids = defaultdict[str, list[str]](list)
    for name, digest in rows:
        ids[digest].append(name)
    duplicates, leaks = [], []
    for names in ids.values():
        splits = {name.split("/")[0] for name in names}
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        if len(splits) > 1:
            leaks.append(f"{shown}: the same image in {' and '.join(sorted(splits))}; expected it in one split")
        elif len(set(names)) > 1:
            duplicates.append(f"{shown}: the same image")
    return duplicates, leaks


def _rare_classes(manifest: Manifest, splits: dict[str, SplitStatistics]) -> Iterator[str]:
    """Yields the classes that are near-empty in the first split, which is used for training."""
    if not splits:
        return
    split, statistics = next(iter(splits.items()))
    total_pixels = max(1, sum(statistics.class_pixels))
    columns = (manifest.classes.names, statistics.class_pixels, statistics.class_images)
    for name, pixels, images in zip(*columns, strict=True):
        if images < MIN_IMAGES or pixels < MIN_SHARE * total_pixels:
            yield f"class {name}: only {pixels} pixels in {images} images of {split}"
