"""Consistency checks of a dataset: shards, rows, counts and duplicates."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from pyarrow.fs import FileSelector, FileType

from segray.data.manifest import FORMAT_VERSION, MANIFEST, SKIPPED_LIST, Manifest, load_manifest_unverified
from segray.data.ray_map import map_on_cluster
from segray.data.storage import UNFINISHED, display_path, filesystem
from segray.data.validate.shard import ShardFindings, ShardTask, inspect_shard

MIN_IMAGES = 3
MIN_SHARE = 1e-5
"""Smallest share of training images, or of their pixels, below which a class is reported as near-empty."""

Progress = Callable[[str, int, int], None]


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


def validate_dataset(root: str, on_progress: Progress = lambda what, done, total: None) -> ValidationReport:
    """Validates a dataset in one pass over its rows on the connected Ray cluster and reports all findings.

    Args:
        root: folder or URI.
        on_progress: callback that receives the name of the current stage, the number of rows done and the total number
            of rows.

    Raises:
        DataError: the manifest does not exist or cannot be read.
    """
    manifest = load_manifest_unverified(root)
    looks = [
        ShardTask(root, name, shard, manifest.classes.num_classes, manifest.classes.ignore_id)
        for name, split in manifest.splits.items()
        for shard in split.shards
    ]
    seen: dict[int, ShardFindings] = {}
    done, rows = 0, sum(split.rows for split in manifest.splits.values())
    for index, one in map_on_cluster(inspect_shard, looks):
        seen[index] = one
        done += looks[index].shard.rows
        on_progress("checking", done, rows)
    by_split = defaultdict[str, list[ShardFindings]](list)
    for index, task in enumerate(looks):
        by_split[task.split].append(seen[index])
    splits = {name: _statistics(manifest, name, by_split[name]) for name in manifest.splits}
    repeated, leaks = _repeated([row for index in range(len(looks)) for row in seen[index].rows])
    faults = [*_manifest_faults(root, manifest, splits), *_strays(root, manifest), *_list_faults(root, manifest, seen)]
    faults += [fault for index in range(len(looks)) for fault in seen[index].faults]
    faults += [*_twice(by_split), *leaks]
    return ValidationReport(manifest, faults, [*repeated, *_near_empty(manifest, splits)], splits)


def _statistics(manifest: Manifest, name: str, seen: list[ShardFindings]) -> SplitStatistics:
    shape = (0, manifest.classes.num_classes)
    return SplitStatistics(
        rows=sum(len(one.rows) for one in seen),
        bytes=sum(shard.bytes for shard in manifest.splits[name].shards),
        class_pixels=np.sum([one.class_pixels for one in seen] or np.zeros(shape, int), axis=0).tolist(),
        class_images=np.sum([one.class_images for one in seen] or np.zeros(shape, int), axis=0).tolist(),
        ignored=sum(one.ignored for one in seen),
        sizes=sum((one.sizes for one in seen), Counter[tuple[int, int]]()),
    )


def _manifest_faults(root: str, manifest: Manifest, splits: dict[str, SplitStatistics]) -> Iterator[str]:
    name = display_path(root, MANIFEST)
    if manifest.format != FORMAT_VERSION:
        yield f"{name}: format {manifest.format}; expected {FORMAT_VERSION}"
    if manifest.digest != manifest.content_digest():
        yield f"{name}: changed by hand (its digest disagrees)"
    if not splits:
        yield f"{name}: no split"
    for split, found in splits.items():
        said = manifest.splits[split]
        for shard in said.shards:
            if shard.rows != sum(shard.row_groups):
                yield f"{name}: {shard.path} has {shard.rows} rows, in row groups of {shard.row_groups}"
        if found.rows == said.rows and list(said.class_pixels) != found.class_pixels:
            said_pixels = list(said.class_pixels)
            yield f"{name}: split {split} has class_pixels {said_pixels}; its masks hold {found.class_pixels}"
        if found.rows == said.rows and found.sizes:
            means = [sum(size[axis] * count for size, count in found.sizes.items()) / found.rows for axis in (0, 1)]
            if not np.allclose(means, [said.mean_width, said.mean_height]):
                yield (
                    f"{name}: split {split} has a mean size of {said.mean_width:.1f}x{said.mean_height:.1f}; its "
                    f"images have {means[0]:.1f}x{means[1]:.1f}"
                )


def _list_faults(root: str, manifest: Manifest, seen: dict[int, ShardFindings]) -> Iterator[str]:
    """Yields the inconsistencies in the lists of skipped and re-encoded images."""
    fs, path = filesystem(root)
    lines = 0
    if fs.get_file_info(f"{path}/{SKIPPED_LIST}").type != FileType.NotFound:
        with fs.open_input_stream(f"{path}/{SKIPPED_LIST}") as file:
            lines = file.read().count(b"\n")
    if lines != manifest.left_out:
        path = display_path(root, SKIPPED_LIST)
        yield f"{path}: {lines} lines; the manifest says that {manifest.left_out} were left out"
    known = {name for one in seen.values() for name, _ in one.rows}
    for line in manifest.normalised:
        name = line.rsplit(": ", 1)[0]
        if name not in known:
            yield f"{display_path(root, MANIFEST)}: {name} is said to be re-encoded; no row has this id"


def _strays(root: str, manifest: Manifest) -> Iterator[str]:
    """Yields the files in the dataset folder that do not belong to the dataset."""
    fs, path = filesystem(root)
    own = {shard.path for split in manifest.splits.values() for shard in split.shards} | {MANIFEST, SKIPPED_LIST}
    if fs.get_file_info(f"{path}/{UNFINISHED}").type != FileType.NotFound:
        yield f"{display_path(root, UNFINISHED)}: left of a conversion; remove it"
    for info in fs.get_file_info(FileSelector(path, recursive=True)):
        relative = info.path.removeprefix(path).strip("/")
        if info.type == FileType.File and relative not in own and not relative.startswith(f"{UNFINISHED}/"):
            yield f"{display_path(root, relative)}: not part of the dataset; remove it"


def _twice(by_split: dict[str, list[ShardFindings]]) -> Iterator[str]:
    counts = Counter(name for seen in by_split.values() for one in seen for name, _ in one.rows)
    for name, count in counts.items():
        if count > 1:
            yield f"{name}: {count} rows have this id; expected one"


def _repeated(rows: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Returns one line for each image that is repeated within a split, and one for each image in several splits."""
    ids = defaultdict[str, list[str]](list)
    for name, digest in rows:
        ids[digest].append(name)
    repeated, leaks = [], []
    for names in ids.values():
        splits = {name.split("/")[0] for name in names}
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        if len(splits) > 1:
            leaks.append(f"{shown}: the same image in {' and '.join(sorted(splits))}; expected it in one split")
        elif len(set(names)) > 1:
            repeated.append(f"{shown}: the same image")
    return repeated, leaks


def _near_empty(manifest: Manifest, splits: dict[str, SplitStatistics]) -> Iterator[str]:
    """Yields the classes that are near-empty in the first split, which is used for training."""
    if not splits:
        return
    name, found = next(iter(splits.items()))
    pixels = max(1, sum(found.class_pixels))
    for label, own, images in zip(manifest.classes.names, found.class_pixels, found.class_images, strict=True):
        if images < MIN_IMAGES or own < MIN_SHARE * pixels:
            yield f"class {label}: {own} pixels in {images} images of {name}; little to learn from"
