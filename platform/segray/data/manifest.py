"""Dataset format: the manifest and the columns of the parquet shards."""

from typing import Self

import pyarrow as pa
import pyarrow.fs
from pydantic import BaseModel, ConfigDict, Field

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.core.parsing import parse_json, summarize_error
from segray.data.storage import (
    UNFINISHED,
    content_hash,
    credentials_hint,
    display_path,
    filesystem,
    one_line,
    strip_credentials,
)

MANIFEST = "dataset.json"

SKIPPED_LIST = "left_out.txt"
"""File next to the manifest that lists the samples that could not be used."""
FORMAT_VERSION = 1

COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("class_pixels", pa.list_(pa.int64()), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
RESERVED_COLUMNS = {*COLUMNS.names, "row", "size", "error"}
"""Names that additional columns must not have."""


class _ManifestPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_ManifestPart):
    """One parquet file.

    Attributes:
        path: path relative to the dataset folder, for example `train/part-00000.parquet`.
        rows: number of rows.
        bytes: size of the file.
        row_groups: number of rows in each row group, in order.
        digest: content hash over the digests of the rows.
    """

    path: str
    rows: int
    bytes: int
    row_groups: tuple[int, ...]
    digest: str


class Split(_ManifestPart):
    """One split, stored as an ordered list of shards.

    Attributes:
        shards: files of the split, in order.
        class_pixels: pixels of each class 0..K-1 over all rows.
        mean_height, mean_width: mean image size in pixels.
    """

    shards: tuple[Shard, ...]
    class_pixels: tuple[int, ...]
    mean_height: float
    mean_width: float

    @property
    def rows(self) -> int:
        """Number of rows in the split."""
        return sum(shard.rows for shard in self.shards)


class Manifest(_ManifestPart):
    """Contents of `dataset.json`: the dataset's description, available without opening a shard.

    Attributes:
        format: version of the dataset format.
        classes: names and palette. The number of classes determines the ignore id.
        splits: splits by name (train, val, test ...).
        source: origin of the data and the command that converted it; informational only.
        normalised: entries `split/id: why` for images that the conversion re-encoded as PNG.
        left_out: number of source samples that could not be used. A list next to the manifest gives the reasons.
        digest: content hash over format, classes and splits.
    """

    format: int
    classes: Classes
    splits: dict[str, Split]
    source: dict[str, str] = Field(default_factory=dict)
    normalised: tuple[str, ...] = ()
    left_out: int = 0
    digest: str = ""

    def with_digest(self) -> Self:
        """Returns a copy of the manifest with its digest set."""
        return self.model_copy(update={"digest": self.content_digest()})

    def content_digest(self) -> str:
        """Computes the hash over format, classes and splits; the origin of the data is not included."""
        return content_hash(self.model_dump_json(include={"format", "classes", "splits"}).encode())

    def split(self, name: str) -> Split:
        """Returns a split by name.

        Raises:
            DataError: the split does not exist; the message lists the existing splits.
        """
        if name not in self.splits:
            raise DataError(
                f"the dataset has no split '{name}'; it has {', '.join(self.splits) or 'none'}; set "
                "--split, data.train_split or data.val_split."
            )
        return self.splits[name]


def read_manifest(root: str) -> Manifest:
    """Reads the manifest of the dataset in `root`, a folder or URI, and checks the size of every shard.

    Raises:
        DataError: `root` holds no dataset, the manifest is damaged, or a shard is missing or has changed.
    """
    manifest = load_manifest_unverified(root)
    if manifest.digest != manifest.content_digest():
        raise DataError(f"{display_path(root, MANIFEST)} does not match its digest; convert the dataset again.")
    _check_shards(root, manifest)
    return manifest


def load_manifest_unverified(root: str) -> Manifest:
    """Reads `dataset.json` without checking its digest or the shards.

    Raises:
        DataError: `root` holds no dataset, or its manifest is damaged.
    """
    fs, path = filesystem(root)
    try:
        if fs.get_file_info(f"{path}/{MANIFEST}").type is pyarrow.fs.FileType.Unknown:  # reading a pipe may never end
            raise DataError(f"{display_path(root, MANIFEST)} is not a regular file; convert the dataset again.")
        with fs.open_input_stream(f"{path}/{MANIFEST}") as file:
            return _parse(root, file.read())
    except FileNotFoundError as error:
        if fs.get_file_info(f"{path}/{UNFINISHED}").type != pyarrow.fs.FileType.NotFound:
            raise DataError(
                f"data.root {strip_credentials(root)} contains an unfinished conversion; run its command again "
                "to resume it."
            ) from error
        raise DataError(
            f"data.root {strip_credentials(root)} contains no dataset ({MANIFEST} is missing); create one with "
            f"`python pipelines/prepare.py --format folder --source DIR --out {strip_credentials(root)}`."
        ) from error
    except OSError as error:
        raise DataError(
            f"data.root {strip_credentials(root)} cannot be read: {one_line(error)}{credentials_hint(root)}"
        ) from error


def _parse(root: str, text: bytes) -> Manifest:
    try:
        content = parse_json(text)
        if content.get("format") != FORMAT_VERSION:
            raise DataError(
                f"{display_path(root, MANIFEST)} has format {content.get('format')}; expected {FORMAT_VERSION}."
            )
        manifest = Manifest.model_validate(content)
    except (ValueError, AttributeError) as error:  # not JSON, not text, or not a valid manifest
        raise DataError(
            f"{display_path(root, MANIFEST)} is damaged ({summarize_error(error)}); convert the dataset again."
        ) from error
    return manifest


def _check_shards(root: str, manifest: Manifest) -> None:
    fs, path = filesystem(root)
    for split in manifest.splits.values():
        try:
            infos = fs.get_file_info([f"{path}/{shard.path}" for shard in split.shards])
        except OSError as error:
            raise DataError(
                f"data.root {strip_credentials(root)} cannot be read: {one_line(error)}{credentials_hint(root)}"
            ) from error
        for shard, info in zip(split.shards, infos, strict=True):
            if info.type == pyarrow.fs.FileType.NotFound:
                raise DataError(f"shard {display_path(root, shard.path)} is missing; convert the dataset again.")
            if info.type != pyarrow.fs.FileType.File:
                raise DataError(f"shard {display_path(root, shard.path)} is not a file; convert the dataset again.")
            if info.size != shard.bytes:
                raise DataError(
                    f"shard {display_path(root, shard.path)} is damaged: {info.size} bytes; expected {shard.bytes}; "
                    "convert the dataset again."
                )
