"""Validation of one shard against the manifest and its own columns; all values are recomputed."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.core.parsing import summarize_error
from segray.data.convert.metadata import shard_schema
from segray.data.images import decode_mask
from segray.data.manifest import COLUMNS, Shard
from segray.data.normalize import PILLOW_MAX_PIXELS, normalize_image
from segray.data.row_groups import read_row_groups
from segray.data.storage import content_hash, display_path, filesystem

SHARD = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class ShardTask:
    """One shard to validate.

    Attributes:
        root: folder or URI of the dataset.
        split: name of the split.
        shard: entry of the shard in the manifest.
        num_classes: number of classes K.
        ignore_id: ignore id of the masks.
    """

    root: str
    split: str
    shard: Shard
    num_classes: int
    ignore_id: int


@dataclass
class ShardFindings:
    """Findings and statistics of one shard.

    Attributes:
        errors: one line per error.
        rows: id and image content hash of each row.
        class_pixels: number of pixels of each class, (K,).
        class_images: number of images that contain each class, (K,).
        ignored: number of ignored pixels.
        sizes: number of images of each (width, height).
    """

    errors: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    class_pixels: list[int] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)


def inspect_shard(task: ShardTask) -> ShardFindings:
    """Validates a shard and returns its statistics and all errors."""
    findings = ShardFindings(class_pixels=[0] * task.num_classes, class_images=[0] * task.num_classes)
    name = display_path(task.root, task.shard.path)
    digests: list[bytes] = []
    for number, row in _read_rows(task, name, findings):
        digests.append(str(row["digest"]).encode())
        findings.errors += (
            f"{name}, row {number} ({row['id']}): {error}" for error in _row_errors(task, row, findings)
        )
        findings.rows.append((str(row["id"]), content_hash(row["image"])))
    if not findings.errors and content_hash(*digests) != task.shard.digest:
        findings.errors.append(f"{name}: its rows differ from the manifest (the digest does not match)")
    return findings


def _read_rows(task: ShardTask, name: str, findings: ShardFindings) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the readable rows with their numbers."""
    fs, root = filesystem(task.root)
    if not SHARD.fullmatch(task.shard.path):
        findings.errors.append(f"{name}: path outside the dataset; expected SPLIT/NAME.parquet")
        return
    path = f"{root}/{task.shard.path}"
    info = fs.get_file_info(path)
    if info.type == FileType.NotFound:
        findings.errors.append(f"{name}: missing")
        return
    if info.type != FileType.File:
        findings.errors.append(f"{name}: not a regular file")
        return
    if info.size != task.shard.bytes:
        findings.errors.append(f"{name}: {info.size} bytes; expected {task.shard.bytes}")
    try:
        with fs.open_input_file(path) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            yield from _read_groups(task, name, file, findings)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if is_out_of_memory(error):  # the shard is not at fault
            raise
        findings.errors.append(f"{name}: cannot be read ({summarize_error(error)})")


def _read_groups(
    task: ShardTask, name: str, file: pq.ParquetFile, findings: ShardFindings
) -> Iterator[tuple[int, dict[str, Any]]]:
    extra_columns = file.schema_arrow.names[len(COLUMNS) :]
    has_duplicates = len(set(file.schema_arrow.names)) < len(file.schema_arrow.names)
    if has_duplicates or not file.schema_arrow.equals(shard_schema(extra_columns)):
        findings.errors.append(
            f"{name}: columns {_format_schema(file.schema_arrow)}; expected {_format_schema(COLUMNS)}"
        )
        return
    sizes = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    if sizes != task.shard.row_groups:
        findings.errors.append(f"{name}: row groups of {sizes} rows; expected {task.shard.row_groups}")
    number = 0
    for group, rows in enumerate(sizes):
        try:
            yield from enumerate(read_row_groups(file, [group], None, name).to_pylist(), number)
        except (OSError, pa.ArrowException, UnicodeDecodeError, DataError) as error:
            if is_out_of_memory(error):
                raise
            place = f"row group {group}, rows {number} to {number + rows - 1}"
            findings.errors.append(f"{name}: {place}, is damaged ({summarize_error(error)})")
        number += rows


def _format_schema(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'' if field.nullable else ', not null'}" for field in schema)


def _row_errors(task: ShardTask, row: dict[str, Any], findings: ShardFindings) -> Iterator[str]:
    """Yields the errors of a row and adds the row to the statistics."""
    if content_hash(row["image"], row["mask"]) != row["digest"]:
        yield "image or mask changed after the conversion (the digest does not match)"
    split, _, name = str(row["id"]).partition("/")
    if split != task.split or not name:
        yield f"invalid id; expected {task.split}/NAME"
    size = (row["height"], row["width"])
    yield from _image_errors(row["image"], size)
    try:
        ids = decode_mask(row["mask"])
    except DataError as error:
        yield str(error)
        return
    if ids.dtype != (np.uint8 if task.ignore_id <= 255 else np.uint16):
        yield f"its mask has {ids.dtype.itemsize * 8} bits; expected {8 if task.ignore_id <= 255 else 16}"
    if ids.shape != size:
        yield f"its mask is {ids.shape[1]}x{ids.shape[0]}; expected {size[1]}x{size[0]}"
    counts = np.bincount(ids.reshape(-1), minlength=task.ignore_id + 1)
    invalid = [index for index in np.flatnonzero(counts) if index >= task.num_classes and index != task.ignore_id]
    if invalid:
        yield f"its mask contains the id {invalid[0]}; expected 0..{task.num_classes - 1} or {task.ignore_id}"
    pixels = counts[: task.num_classes]
    if row["class_pixels"] != pixels.tolist():
        yield f"class_pixels are {row['class_pixels']}; its mask has {pixels.tolist()}"
    findings.class_pixels = (np.array(findings.class_pixels) + pixels).tolist()
    findings.class_images = (np.array(findings.class_images) + (pixels > 0)).tolist()
    findings.ignored += int(counts[task.ignore_id])
    findings.sizes[size[::-1]] += 1


def _image_errors(encoded: bytes, size: tuple[int, int]) -> Iterator[str]:
    try:
        image = normalize_image(encoded, "its image", PILLOW_MAX_PIXELS)
    except DataError as error:
        yield str(error)
        return
    if image.reason:
        yield f"its image is not an upright 8-bit JPEG, PNG or WebP ({image.reason})"
    if (image.height, image.width) != size:
        yield f"its image is {image.width}x{image.height}; expected {size[1]}x{size[0]}"
