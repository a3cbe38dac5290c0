"""Partitioning of source samples into parquet shards, and checking and writing of one shard."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.core.numbers import MIB
from segray.data.convert.labels import LabelMap
from segray.data.convert.metadata import shard_schema
from segray.data.images import Mask, encode_mask
from segray.data.manifest import FORMAT_VERSION, Shard
from segray.data.normalize import normalize_image
from segray.data.source_masks import align_mask, decode_source_mask
from segray.data.sources.sample import SourceSample
from segray.data.storage import content_hash, display_path, filesystem

MIN_SHARDS = 8

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class ShardLimits:
    """Size limits of the output and of the source images.

    Attributes:
        shard_bytes: size in bytes at which a shard is closed.
        group_rows, group_bytes: number of rows and size in bytes at which a row group is closed. Training holds one row
            group in memory for every image of a batch.
        image_pixels: maximum number of pixels of a source image. A larger image may be a decompression bomb.
    """

    shard_bytes: int = 128 * MIB
    group_rows: int = 16
    group_bytes: int = 4 * MIB
    image_pixels: int = 2**27


@dataclass(frozen=True)
class ShardJob:
    """One shard to write, with all inputs that a task on any node needs; a shard that grows too large is split.

    Attributes:
        path: path of the shard relative to the root.
        samples: samples that become the rows.
        root: folder or URI of the dataset.
        labels: mapping from mask ids to classes.
        bounds: size limits.
        columns: names of additional columns.
    """

    path: str
    samples: tuple[SourceSample, ...]
    root: str
    labels: LabelMap
    bounds: ShardLimits
    columns: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Content hash of all inputs that determine the output."""
        settings = (
            FORMAT_VERSION,
            self.path,
            self.labels.num_classes,
            sorted(self.labels.lookup.items()),
            asdict(self.bounds),
        )
        samples = (
            (sample.id, sample.image, sample.mask, sample.version, *self.extra_columns(sample).items())
            for sample in self.samples
        )
        encoded = (repr(sample).encode("utf-8", "surrogateescape") for sample in samples)
        return content_hash(repr(settings).encode(), *encoded)

    def extra_columns(self, sample: SourceSample) -> dict[str, str | None]:
        """Returns the additional columns of a sample."""
        return {name: sample.columns.get(name) for name in self.columns}


@dataclass
class ShardResult:
    """Result of a job.

    Attributes:
        rows: number of samples processed, including unusable ones.
        shards: files written; empty if no sample can be used.
        class_pixels: pixels of each class, (K,).
        heights, widths: sums over the rows, in pixels.
        normalised: entries `id: why` for re-encoded images.
        problems: id and reason of each sample that cannot be used.
        highest_id: largest mask id found, known to the label map or not; -1 if there is none.
    """

    rows: int = 0
    shards: list[Shard] = field(default_factory=list)
    class_pixels: list[int] = field(default_factory=list)
    heights: int = 0
    widths: int = 0
    normalised: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    highest_id: int = -1


def partition_samples(samples: Sequence[SourceSample], bounds: ShardLimits) -> Iterator[tuple[SourceSample, ...]]:
    """Yields the samples of each shard of one split, in order; the partition depends only on the arguments.

    A shard has at least `shard_bytes`, or an eighth of the split if that is less, so that a small dataset keeps several
    nodes busy.
    """
    rows_per_shard = -(-len(samples) // MIN_SHARDS)
    max_rows = -(-rows_per_shard // bounds.group_rows) * bounds.group_rows
    shard: list[SourceSample] = []
    size = 0
    for sample in samples:
        shard.append(sample)
        size += sample.size_bytes
        if len(shard) >= max_rows or size >= bounds.shard_bytes:
            yield tuple(shard)
            shard, size = [], 0
    if shard:
        yield tuple(shard)


def write_shard(job: ShardJob) -> ShardResult:
    """Writes the shards of a job with one row group in memory at a time, and returns the result.

    Raises:
        DataError: the shard cannot be written. Problems with samples are reported in the result instead.
    """
    result = ShardResult(class_pixels=[0] * job.labels.num_classes)
    rows = (row for sample in job.samples if (row := _convert_sample(sample, job, result)))
    groups = _group_rows(rows, job.bounds)
    for number, group in enumerate(groups):
        path = job.path if number == 0 else job.path.replace(".parquet", f"-{number}.parquet")
        result.shards.append(_write_file(job, path, chain([group], groups)))
    return result


def scan_mask_ids(samples: Sequence[SourceSample], max_pixels: int) -> set[int]:
    """Returns the ids that occur in the masks; unreadable masks are skipped, and `write_shard` reports them later."""
    mask_ids: set[int] = set()
    for sample in samples:
        try:
            ids = decode_source_mask(_read(sample.read_mask, sample.mask), sample.mask, max_pixels)
        except DataError:
            continue
        mask_ids.update(np.flatnonzero(np.bincount(ids.reshape(-1))).tolist())
    return mask_ids


def _group_rows(rows: Iterator[Row], bounds: ShardLimits) -> Iterator[list[Row]]:
    """Yields the rows of each row group."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]) + len(row["mask"])
        if len(group) == bounds.group_rows or size >= bounds.group_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_file(job: ShardJob, path: str, groups: Iterator[list[Row]]) -> Shard:
    """Writes row groups to a file until the file reaches the shard size limit or no rows remain."""
    sizes: list[int] = []
    digests: list[bytes] = []
    # Images and masks are compressed already. Page checksums distinguish a damaged page from a damaged image.
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    fs, root = filesystem(job.root)
    try:
        with _open_for_writing(fs, f"{root}/{path}") as file:
            columns = shard_schema(job.columns)
            with pq.ParquetWriter(file, columns, write_statistics=["id", "height", "width"], **options) as writer:
                for group in groups:
                    writer.write_table(pa.Table.from_pylist(group, columns))
                    sizes.append(len(group))
                    digests += [row["digest"].encode() for row in group]
                    if file.tell() >= job.bounds.shard_bytes:
                        break
            size = file.tell()
    except OSError as error:
        raise DataError(
            f"{display_path(job.root, path)} cannot be written ({error}); expected a folder with free space that every "
            "node of the cluster can access."
        ) from error
    return Shard(path=path, rows=sum(sizes), bytes=size, row_groups=tuple(sizes), digest=content_hash(*digests))


@contextmanager
def _open_for_writing(fs: pyarrow.fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Opens a file for writing that gets its final name when it is complete.

    A task that Ray considers dead may write the same file concurrently.
    """
    if not isinstance(fs, pyarrow.fs.LocalFileSystem):  # an object in a bucket appears only when it is complete
        with fs.open_output_stream(path) as file:
            yield file
        return
    partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with fs.open_output_stream(partial) as file:
            yield file
        fs.move(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _convert_sample(sample: SourceSample, job: ShardJob, result: ShardResult) -> Row | None:
    """Returns the parquet row of a sample, or records its problem and returns `None`."""
    result.rows += 1
    max_pixels = job.bounds.image_pixels
    try:
        image = normalize_image(_read(sample.read_image, sample.image), sample.image, max_pixels)
        ids = decode_source_mask(_read(sample.read_mask, sample.mask), sample.mask, max_pixels)
        ids = align_mask(ids, image, sample.image, sample.mask)
        mask, class_pixels = _map_ids(ids, job.labels, sample.mask, result)
    except DataError as error:
        result.problems.append((sample.id, str(error)))
        return None
    if image.reason:
        result.normalised.append(f"{sample.id}: {image.reason}")
    result.heights += image.height
    result.widths += image.width
    result.class_pixels = (np.array(result.class_pixels, np.int64) + class_pixels).tolist()
    encoded = encode_mask(mask)
    return {
        "id": sample.id,
        "image": image.encoded,
        "mask": encoded,
        "height": image.height,
        "width": image.width,
        "class_pixels": class_pixels,
        "digest": content_hash(image.encoded, encoded),
        **job.extra_columns(sample),
    }


def _read(read: Callable[[], T], name: str) -> T:
    """Calls the read function of a source and converts any error to a DataError for this sample."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{name} cannot be read ({type(error).__name__}: {error})") from error


def _map_ids(ids: Mask, labels: LabelMap, name: str, result: ShardResult) -> tuple[Mask, NDArray[np.int64]]:
    """Returns the mask in the ids and dtype of the dataset, and the pixels of each class, (K,).

    Raises:
        DataError: the mask holds ids that the label map does not contain.
    """
    counts = np.bincount(ids.reshape(-1))
    present = np.flatnonzero(counts).tolist()
    not_ignored = (index for index in present if labels.lookup.get(index, -1) is not None)
    result.highest_id = max([result.highest_id, *not_ignored])
    unknown = [index for index in present if index not in labels.lookup]
    if unknown:
        pixels = ", ".join(f"id {index} ({counts[index]} pixels)" for index in unknown[:10])
        more = f" and {len(unknown) - 10} more ids" if len(unknown) > 10 else ""
        raise DataError(f"{name} contains {pixels}{more}; expected ids {labels.expected_ids}")
    class_pixels = np.zeros(labels.num_classes, np.int64)
    for index in present:
        target = labels.lookup[index]
        if target is not None:
            class_pixels[target] += counts[index]
    return _renumber(ids, {index: labels.lookup[index] for index in present}, labels.ignore_id), class_pixels


def _renumber(ids: Mask, target_of: Mapping[int, int | None], ignore_id: int) -> Mask:
    """Maps the ids of a mask to class ids in the dtype of the dataset."""
    dtype = np.dtype(np.uint8 if ignore_id <= 255 else np.uint16)
    classes = {index: ignore_id if target is None else target for index, target in target_of.items()}
    if ids.dtype == dtype and all(index == class_index for index, class_index in classes.items()):
        return ids
    table = np.zeros(max(classes) + 1, dtype)
    table[list(classes)] = list(classes.values())
    return table[ids]
