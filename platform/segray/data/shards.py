"""Source samples as parquet shards: how they are cut, and how one shard is checked and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.classes import ignore_id
from segray.data.images import Mask, aligned_mask, encode_mask, source_mask, upright_image
from segray.data.schema import COLUMNS, Shard, digest_of, filesystem
from segray.data.sources.sample import Sample
from segray.errors import DataError

WIDE_IGNORE = 65535
FEWEST_SHARDS = 8


@dataclass(frozen=True)
class Labels:
    """What the values of the source masks mean.

    Attributes:
        num_classes: K; the source's ids 0..K-1 are the dataset's.
        ignored: further source ids that become the ignore id.
    """

    num_classes: int
    ignored: frozenset[int]

    @property
    def ignore_id(self) -> int:
        """The mask value that is not counted; source masks may hold it already."""
        return ignore_id(self.num_classes)


@dataclass(frozen=True)
class Job:
    """One shard to write: all that a task on any machine needs to know."""

    path: str
    samples: tuple[Sample, ...]
    root: str
    labels: Labels
    row_group_rows: int


@dataclass
class Outcome:
    """What came of a job.

    Attributes:
        shard: the file written; of no use where there are problems.
        rows: samples looked at, good or bad.
        class_pixels: (K,) pixels of each class.
        heights, widths: sums over the rows, in pixels.
        normalised: `id: why` of images that were re-encoded.
        problems: one line for each sample that cannot be used.
        highest_id: the largest id met that is not ignored, -1 where there is none.
    """

    shard: Shard
    rows: int
    class_pixels: list[int]
    heights: int = 0
    widths: int = 0
    normalised: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    highest_id: int = -1


def cut(samples: Sequence[Sample], shard_bytes: int, row_group_rows: int) -> Iterator[tuple[Sample, ...]]:
    """Yields the samples of each shard of one split, in order; the cut depends on nothing but its arguments.

    A shard is whole row groups of at least `shard_bytes` together, or an eighth of the split where that is
    less: a small dataset must keep several machines busy too.
    """
    share = -(-len(samples) // FEWEST_SHARDS)
    most_rows = -(-share // row_group_rows) * row_group_rows
    shard: list[Sample] = []
    for sample in samples:
        shard.append(sample)
        whole = len(shard) % row_group_rows == 0
        if whole and (len(shard) >= most_rows or sum(one.size_bytes for one in shard) >= shard_bytes):
            yield tuple(shard)
            shard = []
    if shard:
        yield tuple(shard)


def write(job: Job) -> Outcome:
    """Writes the shard of a job, one row group in memory at a time, and returns what came of it.

    Raises:
        DataError: the shard cannot be written; what is wrong with samples stands in the outcome instead.
    """
    outcome = Outcome(Shard(path=job.path, rows=0, bytes=0, row_groups=(), digest=""), 0, [])
    fs, root = filesystem(job.root)
    path = f"{root}/{job.path}"
    try:
        with fs.open_output_stream(path) as file:
            groups, digests = _write_groups(file, job, outcome)
        size = fs.get_file_info(path).size
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error}); expected a folder with room that every node of the cluster sees."
        ) from error
    outcome.shard = Shard(
        path=job.path,
        rows=len(digests),
        bytes=size,
        row_groups=tuple(groups),
        digest=digest_of(*(digest.encode() for digest in digests)),
    )
    return outcome


def source_ids(samples: Sequence[Sample]) -> set[int]:
    """Returns the ids that occur in the masks; unreadable ones are left for `write` to report."""
    found: set[int] = set()
    for sample in samples:
        try:
            counts = np.bincount(source_mask(sample.read_mask(), sample.mask).reshape(-1))
        except DataError:
            continue
        found.update(np.flatnonzero(counts).tolist())
    return found


def _write_groups(file: Any, job: Job, outcome: Outcome) -> tuple[list[int], list[str]]:
    groups: list[int] = []
    digests: list[str] = []
    pixels = np.zeros(job.labels.num_classes, np.int64)
    # Images and masks are compressed already; a checksum tells a damaged page from a damaged image.
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(file, COLUMNS, write_statistics=["id", "height", "width"], **options) as writer:
        for start in range(0, len(job.samples), job.row_group_rows):
            samples = job.samples[start : start + job.row_group_rows]
            rows = [row for sample in samples if (row := _row(sample, job.labels, outcome))]
            if not rows:
                continue
            writer.write_table(pa.Table.from_pylist(rows, COLUMNS), row_group_size=job.row_group_rows)
            groups.append(len(rows))
            digests += [row["digest"] for row in rows]
            pixels += np.sum([row["class_pixels"] for row in rows], axis=0)
    outcome.class_pixels = pixels.tolist()
    return groups, digests


def _row(sample: Sample, labels: Labels, outcome: Outcome) -> dict[str, Any] | None:
    """Returns the parquet row of a sample, or nothing after noting its problem."""
    outcome.rows += 1
    try:
        image = upright_image(sample.read_image(), sample.image)
        ids = source_mask(sample.read_mask(), sample.mask)
        ids = aligned_mask(ids, image, sample.image, sample.mask)
        mask, class_pixels = _mapped(ids, labels, sample.mask, outcome)
    except DataError as error:
        outcome.problems.append(str(error))
        return None
    if image.reason:
        outcome.normalised.append(f"{sample.id}: {image.reason}")
    outcome.heights += image.height
    outcome.widths += image.width
    encoded = encode_mask(mask)
    return {
        "id": sample.id,
        "image": image.encoded,
        "mask": encoded,
        "height": image.height,
        "width": image.width,
        "class_pixels": class_pixels,
        "digest": digest_of(image.encoded, encoded),
    }


def _mapped(ids: Mask, labels: Labels, name: str, outcome: Outcome) -> tuple[Mask, NDArray[np.int64]]:
    """Returns the mask in the dataset's ids and dtype, and the pixels of each class (K,).

    Raises:
        DataError: the mask holds ids that are neither a class nor ignored.
    """
    num_classes = labels.num_classes
    counts = np.bincount(ids.reshape(-1), minlength=num_classes)
    ignored = labels.ignored | {labels.ignore_id, WIDE_IGNORE}
    present = [int(index) for index in np.flatnonzero(counts) if index not in ignored]
    outcome.highest_id = max([outcome.highest_id, *present])
    unknown = [index for index in present if index >= num_classes]
    if unknown:
        pixels = ", ".join(f"id {index} ({counts[index]} pixels)" for index in unknown[:10])
        more = f" and {len(unknown) - 10} more ids" if len(unknown) > 10 else ""
        raise DataError(f"{name} holds {pixels}{more}; expected ids 0..{num_classes - 1} or {labels.ignore_id}")
    table = np.full(len(counts), labels.ignore_id, np.uint16)
    table[:num_classes] = np.arange(num_classes)
    mask = table[ids] if labels.ignore_id > 255 else table.astype(np.uint8)[ids]
    return mask, counts[:num_classes].astype(np.int64)
