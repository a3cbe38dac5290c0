"""The data contract: what a dataset folder holds, its manifest and the columns of its parquet shards."""

import hashlib
import json
from functools import lru_cache
from typing import Any, Self

import pyarrow as pa
import pyarrow.fs
from pydantic import BaseModel, ConfigDict, Field

from segray import places
from segray.classes import Classes
from segray.errors import DataError

MANIFEST = "dataset.json"
UNFINISHED = ".unfinished"
"""The folder beside it of a conversion that is not finished."""
LEFT_OUT = "left_out.txt"
"""The list beside it of samples that could not be used."""
FORMAT = 1

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
RESERVED = {*COLUMNS.names, "row", "size", "error"}
"""No names of further columns."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Part):
    """One parquet file.

    Attributes:
        path: relative to the dataset folder, e.g. `train/part-00000.parquet`.
        rows: number of rows.
        bytes: size of the file.
        row_groups: rows of each row group, in order.
        digest: content hash over the digests of its rows.
    """

    path: str
    rows: int
    bytes: int
    row_groups: tuple[int, ...]
    digest: str


class Split(_Part):
    """The rows of one split, shard after shard.

    Attributes:
        shards: the files, in order.
        class_pixels: pixels of each class 0..K-1 over all rows.
        mean_height, mean_width: mean image size in pixels.
    """

    shards: tuple[Shard, ...]
    class_pixels: tuple[int, ...]
    mean_height: float
    mean_width: float

    @property
    def rows(self) -> int:
        """Number of rows of the split."""
        return sum(shard.rows for shard in self.shards)


class Manifest(_Part):
    """What `dataset.json` holds: everything known about a dataset without opening a shard.

    Attributes:
        format: version of this layout.
        classes: names and palette; the ignore id follows from their number.
        splits: by name (train, val, test ...).
        source: where the data came from and the command that converted it, for people.
        normalised: `split/id: why` of images that were re-encoded as PNG at conversion.
        left_out: samples of the source that could not be used; a list beside the manifest says why.
        digest: content hash over format, classes and splits.
    """

    format: int
    classes: Classes
    splits: dict[str, Split]
    source: dict[str, str] = Field(default_factory=dict)
    normalised: tuple[str, ...] = ()
    left_out: int = 0
    digest: str = ""

    def sealed(self) -> Self:
        """Returns the manifest with its digest set."""
        return self.model_copy(update={"digest": self.content_digest()})

    def content_digest(self) -> str:
        """Returns the hash over what the data is; where it came from does not count."""
        return digest_of(self.model_dump_json(include={"format", "classes", "splits"}).encode())

    def split(self, name: str) -> Split:
        """Returns a split by name.

        Raises:
            DataError: there is no such split; the message lists those there are.
        """
        if name not in self.splits:
            raise DataError(
                f"the dataset has no split '{name}'; it has {', '.join(self.splits) or 'none'}; name another with "
                "--split, data.train_split or data.val_split."
            )
        return self.splits[name]


def digest_of(*pieces: Any) -> str:
    """Returns a content hash of the pieces (bytes or buffers), each counted with its length so that borders matter."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=16)  # a client of a remote store keeps its connections
def filesystem(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Returns the filesystem of a folder or URI (local, s3://, gs://) and the folder's path on it.

    Credentials come from the environment; so does another endpoint of S3 (AWS_ENDPOINT_URL), unless the URI names
    one: `s3://bucket/folder?endpoint_override=http://127.0.0.1:9000`.

    Raises:
        DataError: the URI's scheme is unknown.
    """
    try:
        if "://" in root:
            found, path = pyarrow.fs.FileSystem.from_uri(root)
            return found, path
        return pyarrow.fs.LocalFileSystem(), root.rstrip("/") or "/"
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{places.masked(root)} cannot be opened: {places.masked(str(error))}.") from error


def place(root: str, path: str) -> str:
    """Returns where a file of a dataset lies, for people; a URI's options and credentials are left out."""
    return f"{plain(root)}/{path}"


def plain(root: str) -> str:
    """Returns a folder, or a URI without its options and credentials."""
    scheme, is_uri, rest = root.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if is_uri else root


def advice(root: str) -> str:
    """Returns what to look at where a store cannot be read: where its credentials come from."""
    known = {
        "s3": "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role, "
        "another endpoint from AWS_ENDPOINT_URL; every node of the cluster needs them",
        "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS or the machine's service account; every node of "
        "the cluster needs them",
    }
    scheme, is_uri, _ = root.partition("://")
    return f"; {known[scheme]}." if is_uri and scheme in known else "."


def read_manifest(root: str) -> Manifest:
    """Returns the manifest of the dataset in `root`, a folder or URI, after a look at every shard's size.

    Raises:
        DataError: no dataset is there, its manifest is damaged, or a shard vanished or changed.
    """
    manifest = unchecked_manifest(root)
    if manifest.digest != manifest.content_digest():
        raise DataError(f"{place(root, MANIFEST)} was changed by hand (its digest disagrees); convert again.")
    _check_shards(root, manifest)
    return manifest


def unchecked_manifest(root: str) -> Manifest:
    """Returns what `dataset.json` says, be it true or not.

    Raises:
        DataError: no dataset is there, or its manifest is damaged.
    """
    fs, path = filesystem(root)
    try:
        with fs.open_input_stream(f"{path}/{MANIFEST}") as file:
            return _parse(root, file.read())
    except FileNotFoundError as error:
        if fs.get_file_info(f"{path}/{UNFINISHED}").type != pyarrow.fs.FileType.NotFound:
            raise DataError(
                f"data.root {plain(root)} holds a conversion that was not finished; give its command once more."
            ) from error
        raise DataError(
            f"data.root {plain(root)} holds no dataset ({MANIFEST} is missing); "
            f"make one with `python pipelines/prepare.py --format folder --source DIR --out {plain(root)}`."
        ) from error
    except OSError as error:
        raise DataError(f"data.root {plain(root)} cannot be read: {_said(error)}{advice(root)}") from error


def _said(error: OSError) -> str:
    """Returns what a store said, on one line."""
    return " ".join(str(error).split()).rstrip(".")


def _parse(root: str, text: bytes) -> Manifest:
    try:
        found = json.loads(text)
        if found.get("format") != FORMAT:
            raise DataError(f"{place(root, MANIFEST)} has format {found.get('format')}; expected {FORMAT}.")
        manifest = Manifest.model_validate(found)
    except (ValueError, AttributeError) as error:  # no JSON, no text, or not what a manifest holds
        raise DataError(f"{place(root, MANIFEST)} is damaged ({error}); convert the dataset again.") from error
    return manifest


def _check_shards(root: str, manifest: Manifest) -> None:
    fs, path = filesystem(root)
    for split in manifest.splits.values():
        try:
            infos = fs.get_file_info([f"{path}/{shard.path}" for shard in split.shards])
        except OSError as error:
            raise DataError(f"data.root {plain(root)} cannot be read: {_said(error)}{advice(root)}") from error
        for shard, info in zip(split.shards, infos, strict=True):
            if info.type == pyarrow.fs.FileType.NotFound:
                raise DataError(f"shard {place(root, shard.path)} is missing; convert the dataset again.")
            if info.size != shard.bytes:
                raise DataError(
                    f"shard {place(root, shard.path)} is damaged: {info.size} bytes; expected {shard.bytes}; "
                    "convert the dataset again."
                )
