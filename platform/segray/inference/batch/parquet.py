"""Images stored in the row groups of arbitrary parquet files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo

from segray.core.errors import DataError, format_list
from segray.data.normalize import IMAGE_SUFFIXES
from segray.data.storage import filesystem, strip_credentials
from segray.inference.batch.inputs import PART_IMAGES, Chunks, InputImage

IMAGE_COLUMNS, NAME_COLUMNS = ("image", "pixel_values", "img"), ("id", "file_name", "filename", "path")


@dataclass(frozen=True)
class RowGroupShard:
    """A row group of a parquet file.

    Attributes:
        source: folder or URI that contains the file.
        path: path of the file.
        group: index of the row group.
        column: column of the images: bytes, or structs with a field `bytes`.
        names: names of the rows.
        version: version that changes with the file.
    """

    source: str
    path: str
    group: int
    column: str
    names: tuple[str, ...]
    version: str

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return ceil(self.images / PART_IMAGES)

    @property
    def is_length_known(self) -> bool:
        """Whether the number of images is known, always True."""
        return True

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the chunks that are not done. The row group is not read if all chunks are done.

        Raises:
            DataError: the file is damaged or missing.
        """
        wanted = [number for number in range(self.num_chunks) if number not in done]
        cells = self._read() if wanted else []
        for number in wanted:
            rows = range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, self.images))
            yield number, [self._picture(self.names[row], cells[row]) for row in rows]

    def _read(self) -> pa.ChunkedArray:
        fs, _ = filesystem(self.source)
        with _reading(self.path), pq.ParquetFile(self.path, filesystem=fs) as file:
            return file.read_row_group(self.group, columns=[self.column], use_threads=False)[self.column]

    @staticmethod
    def _picture(name: str, cell: Any) -> InputImage:
        found = cell.as_py()
        encoded = found.get("bytes") if isinstance(found, dict) else found
        return InputImage(name, encoded) if encoded else InputImage(name, b"", f"{name} holds no bytes of an image")


def list_row_groups(source: str, infos: Sequence[FileInfo]) -> list[RowGroupShard]:
    """Returns the row groups of parquet files.

    Raises:
        DataError: a file cannot be read, there are no rows, or row names are duplicated or not valid file names.
    """
    units = [rows for info in infos for rows in _row_groups(source, info)]
    count = Counter(name for rows in units for name in rows.names)
    twice = [name for name, found in count.items() if found > 1]
    strange = [name for name in count if not _stays_inside(name)]
    if twice or strange:
        wrong = [f"{name!r} stands there {count[name]} times" for name in twice]
        wrong += [f"{name!r} is no name of a file below a folder" for name in strange]
        raise DataError(
            f"{strip_credentials(source)} has names under which no results can be written:{format_list(wrong)}"
        )
    if not count:
        raise DataError(f"{strip_credentials(source)} holds no row.")
    return units


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _row_groups(source: str, info: FileInfo) -> Iterator[RowGroupShard]:
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
            yield RowGroupShard(
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
