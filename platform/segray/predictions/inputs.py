"""What `predict --source` may be: an image, a folder or bucket of images, a video, parquet, a prepared dataset.

It is cut into units, each read by one task, and these into parts of some images: what is written or, after a kill,
done again as a whole.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from segray.data.originals import IMAGE_SUFFIXES
from segray.data.schema import MANIFEST, Manifest, Split, advice, digest_of, filesystem, plain, read_manifest
from segray.errors import DataError, is_text, listing

PART_IMAGES = 16
PART_FRAMES = 8  # which travel as they are, without being encoded
PARQUET = ".parquet"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
IMAGE_COLUMNS, NAME_COLUMNS = ("image", "pixel_values", "img"), ("id", "file_name", "filename", "path")
FRAMES_OFF = 0.01
"""A video may have fewer frames than it says by this share: of some kinds the count is an estimate."""


@dataclass(frozen=True)
class Picture:
    """An image to be segmented.

    Attributes:
        name: of its results, relative and without a suffix.
        encoded: its bytes; none where they could not be read.
        problem: why not.
    """

    name: str
    encoded: bytes
    problem: str = ""


Part = list[Picture]
Parts = Iterator[tuple[int, Part]]


class Unit(Protocol):
    """What one task reads.

    Attributes:
        version: changes with what it reads.
        images: how many there are, as far as that is known.
        num_parts: how many parts there are, as far as that is known.
        is_counted: whether that is known.
    """

    @property
    def version(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def num_parts(self) -> int: ...
    @property
    def is_counted(self) -> bool: ...
    def parts(self, done: frozenset[int]) -> Parts:
        """Yields the parts that are not done, with their numbers.

        Raises:
            DataError: there is nothing to be read.
        """


@dataclass(frozen=True)
class Inputs:
    """What is to be segmented.

    Attributes:
        place: the source, for people.
        units: of it.
        are_upright: whether images are as a dataset stores them: upright, of 8 bits, without alpha.
        left_out: files that are no images.
        is_single: whether one image was named.
    """

    place: str
    units: Sequence[Unit]
    are_upright: bool
    left_out: int = 0
    is_single: bool = False

    @property
    def images(self) -> int:
        """How many there are, as far as that is known."""
        return sum(unit.images for unit in self.units)

    @property
    def version(self) -> str:
        """Changes with the source."""
        return digest_of(*(unit.version.encode() for unit in self.units))


def find(source: str, split: str | None = None) -> Inputs:
    """Returns what a source holds.

    Args:
        source: an absolute path or URI.
        split: of a prepared dataset; none takes all.

    Raises:
        DataError: there is no such source, or nothing in it to be segmented.
    """
    fs, path = filesystem(source)
    _check_text([source])
    try:
        info = fs.get_file_info(path)
        if info.type == FileType.NotFound:
            raise DataError(f"source {plain(source)} does not exist; expected an image, a folder, a video or parquet.")
        if info.type == FileType.Directory:
            return _folder(source, split)
    except OSError as error:
        raise DataError(f"source {plain(source)} cannot be looked into ({error}){advice(source)}") from error
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == PARQUET:
        return Inputs(plain(source), _tables(source, [info]), are_upright=False)
    if suffix in VIDEO_SUFFIXES:
        return Inputs(plain(source), [_video(source, info)], are_upright=True)
    file = _File(PurePosixPath(path).stem, info)
    return Inputs(plain(source), [Files(source, (file,))], are_upright=False, is_single=True)


def _folder(source: str, split: str | None) -> Inputs:
    fs, root = filesystem(source)
    infos = sorted(_listed(fs, root), key=lambda info: info.path)
    if any(info.path == f"{root}/{MANIFEST}" for info in infos):
        return _dataset(source, read_manifest(source), split)
    if split is not None:
        raise DataError(f"--split is {split}, but {plain(source)} is no prepared dataset; leave the flag out.")
    files = [info for info in infos if info.type != FileType.Directory and not _is_hidden(info.path.removeprefix(root))]
    images = [info for info in files if PurePosixPath(info.path).suffix.lower() in IMAGE_SUFFIXES]
    tables = [info for info in files if info.path.endswith(PARQUET)]
    if images and tables:
        raise DataError(f"{plain(source)} holds images and parquet; give one of them as --source.")
    if tables:
        return Inputs(plain(source), _tables(source, tables), are_upright=False, left_out=len(files) - len(tables))
    if not images:
        raise DataError(f"{plain(source)} holds no image; expected files ending in {' '.join(IMAGE_SUFFIXES)}.")
    named = _named([info.path.removeprefix(f"{root}/") for info in images])
    listed = [_File(name, info) for name, info in zip(named, images, strict=True)]
    units = [Files(source, tuple(listed[at : at + PART_IMAGES])) for at in range(0, len(listed), PART_IMAGES)]
    return Inputs(plain(source), units, are_upright=False, left_out=len(files) - len(images))


def _listed(fs: FileSystem, root: str) -> list[FileInfo]:
    """Returns everything below a folder; links to folders are followed, each folder once."""
    if not isinstance(fs, LocalFileSystem):
        found: list[FileInfo] = fs.get_file_info(FileSelector(root, recursive=True))
        return found
    seen, paths = set[tuple[int, int]](), list[str]()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        paths += [f"{folder}/{name}" for name in files]
    _check_text(paths)
    listed: list[FileInfo] = fs.get_file_info(paths)
    return listed


def _check_text(names: Sequence[str]) -> None:
    """Refuses names that cannot be written down.

    Raises:
        DataError: there is one; those are listed.
    """
    strange = [f"{name!a}" for name in names if not is_text(name)]
    if strange:
        raise DataError(f"{len(strange)} names are no UTF-8; rename them:{listing(strange)}")


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _named(paths: Sequence[str]) -> list[str]:
    """Returns the names of results: without suffix, but where two images differ in that alone."""
    bare = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    count = Counter(bare)
    names = [path if count[name] > 1 else name for path, name in zip(paths, bare, strict=True)]
    return names if len(set(names)) == len(names) else list(paths)  # `a.jpg`, `a.png` and `a.jpg.png`


class _File:
    """An image file as it was when it was listed."""

    def __init__(self, name: str, info: FileInfo) -> None:
        self.name, self.path = name, info.path
        self.version = f"{info.path} {info.size} {info.mtime_ns}"


@dataclass(frozen=True)
class Files:
    """Some image files of a folder or bucket: one part."""

    source: str
    files: tuple[_File, ...]

    @property
    def version(self) -> str:
        """Changes with the files."""
        return digest_of(*(file.version.encode() for file in self.files))

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.files)

    @property
    def num_parts(self) -> int:
        """One."""
        return 1

    @property
    def is_counted(self) -> bool:
        """Yes."""
        return True

    def parts(self, done: frozenset[int]) -> Parts:
        """Yields the one part, if it is not done."""
        if 0 not in done:
            yield 0, [self._read(file) for file in self.files]

    def _read(self, file: _File) -> Picture:
        fs, _ = filesystem(self.source)
        try:
            with fs.open_input_stream(file.path) as stream:
                return Picture(file.name, stream.read())
        except OSError as error:
            return Picture(file.name, b"", f"{file.path} cannot be read ({error})")


@dataclass(frozen=True)
class Rows:
    """A row group of a parquet file.

    Attributes:
        source: folder or URI it lies in.
        path: of the file.
        group: number of the row group.
        column: of the images: bytes, or structs with a field `bytes`.
        names: of its rows.
        version: changes with the file.
    """

    source: str
    path: str
    group: int
    column: str
    names: tuple[str, ...]
    version: str

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return ceil(self.images / PART_IMAGES)

    @property
    def is_counted(self) -> bool:
        """Yes."""
        return True

    def parts(self, done: frozenset[int]) -> Parts:
        """Yields the parts that are not done; the row group is not read where all are.

        Raises:
            DataError: the file is damaged or gone.
        """
        wanted = [number for number in range(self.num_parts) if number not in done]
        cells = self._read() if wanted else []
        for number in wanted:
            rows = range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, self.images))
            yield number, [self._picture(self.names[row], cells[row]) for row in rows]

    def _read(self) -> pa.ChunkedArray:
        fs, _ = filesystem(self.source)
        with _reading(self.path), pq.ParquetFile(self.path, filesystem=fs) as file:
            return file.read_row_group(self.group, columns=[self.column], use_threads=False)[self.column]

    @staticmethod
    def _picture(name: str, cell: Any) -> Picture:
        found = cell.as_py()
        encoded = found.get("bytes") if isinstance(found, dict) else found
        return Picture(name, encoded) if encoded else Picture(name, b"", f"{name} holds no bytes of an image")


@dataclass(frozen=True)
class Video:
    """The frames of a video, on a path that every node sees.

    Attributes:
        path: of the file.
        images: frames it says it has.
        version: changes with the file.
    """

    path: str
    images: int
    version: str

    @property
    def num_parts(self) -> int:
        """How many parts there are, if it has the frames it says it has."""
        return ceil(self.images / PART_FRAMES)

    @property
    def is_counted(self) -> bool:
        """No: that is known at its end."""
        return False

    def parts(self, done: frozenset[int]) -> Parts:
        """Yields the parts that are not done; the frames of the others are passed over."""
        capture = cv2.VideoCapture(self.path)
        number, frames, part = 0, 0, list[Picture]()
        while capture.grab():
            number, place_ = divmod(frames, PART_FRAMES)
            if number not in done:
                part.append(Picture(f"frame-{frames:06d}", _lossless(capture)))
            frames += 1
            if part and place_ == PART_FRAMES - 1:
                yield number, part
                part = []
        if part:
            yield number, part
        number = ceil(frames / PART_FRAMES)  # a part of its own, behind the last
        if frames < self.images * (1 - FRAMES_OFF) - 1 and number not in done:
            problem = f"{self.path} says it has {self.images} frames, of which {frames} can be read"
            yield number, [Picture(f"frame-{frames:06d}", b"", problem)]


def _lossless(capture: cv2.VideoCapture) -> bytes:
    """Returns the frame that was grabbed, as the format that takes no time to write or read."""
    encoded: bytes = cv2.imencode(".bmp", capture.retrieve()[1])[1].tobytes()
    return encoded


def _video(source: str, info: FileInfo) -> Video:
    if "://" in source:
        raise DataError(f"source {plain(source)} is a video in a store; expected one on a path; copy it first.")
    capture = cv2.VideoCapture(info.path)
    if not capture.isOpened() or not capture.grab():
        raise DataError(f"source {info.path} cannot be read as a video; convert it, e.g. with ffmpeg.")
    images = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Video(info.path, images, f"{info.path} {info.size} {info.mtime_ns}")


def _dataset(source: str, manifest: Manifest, split: str | None) -> Inputs:
    splits: list[Split] = [manifest.split(split)] if split is not None else list(manifest.splits.values())
    fs, root = filesystem(source)
    paths = [f"{root}/{shard.path}" for part in splits for shard in part.shards]
    units = _tables(source, fs.get_file_info(paths))
    return Inputs(plain(source), units, are_upright=True)


def _tables(source: str, infos: Sequence[FileInfo]) -> list[Rows]:
    units = [rows for info in infos for rows in _row_groups(source, info)]
    count = Counter(name for rows in units for name in rows.names)
    twice = [name for name, found in count.items() if found > 1]
    strange = [name for name in count if not _stays_inside(name)]
    if twice or strange:
        wrong = [f"{name!r} stands there {count[name]} times" for name in twice]
        wrong += [f"{name!r} is no name of a file below a folder" for name in strange]
        raise DataError(f"{plain(source)} has names under which no results can be written:{listing(wrong)}")
    if not count:
        raise DataError(f"{plain(source)} holds no row.")
    return units


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _row_groups(source: str, info: FileInfo) -> Iterator[Rows]:
    fs, _ = filesystem(source)
    with _reading(info.path), pq.ParquetFile(info.path, filesystem=fs) as file:
        known = file.schema_arrow.names
        image = next((name for name in IMAGE_COLUMNS if name in known and _is_image(file.schema_arrow, name)), None)
        if image is None:
            expected = f"{', '.join(IMAGE_COLUMNS)}, of bytes or structs with bytes"
            raise DataError(f"{info.path} has no column of images; expected {expected}; it has {', '.join(known)}.")
        naming = next((name for name in NAME_COLUMNS if name in known), None)
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if naming is None:
                names = [f"{PurePosixPath(info.path).stem}/{row:07d}" for row in range(first, first + rows)]
            else:
                cells = file.read_row_group(group, columns=[naming])[naming].to_pylist()
                names = [_without_suffix(str(cell)) for cell in cells]
            first += rows
            yield Rows(
                source, info.path, group, image, tuple(names), f"{info.path} {info.size} {info.mtime_ns} {group}"
            )


def _is_image(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    if pa.types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), None)
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _without_suffix(name: str) -> str:
    is_image = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
    return str(PurePosixPath(name).with_suffix("")) if is_image else name


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({' '.join(str(error).split())}).") from error
