"""Images stored in the row groups of arbitrary parquet files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError, format_list
from segray.data.row_groups import read_row_groups
from segray.data.storage import MAX_NAME_BYTES, filesystem, strip_credentials
from segray.inference.batch.images import result_names
from segray.inference.batch.inputs import CHUNK_IMAGES, Chunks, InputImage

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
        return ceil(self.images / CHUNK_IMAGES)

    @property
    def is_length_known(self) -> bool:
        """Whether the number of images is known, always True."""
        return True

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the chunks that are not done. The row group is not read if all chunks are done.

        Raises:
            DataError: the file is damaged or missing.
        """
        remaining = [number for number in range(self.num_chunks) if number not in done]
        cells = self._read() if remaining else []
        for number in remaining:
            rows = range(number * CHUNK_IMAGES, min((number + 1) * CHUNK_IMAGES, self.images))
            yield number, [self._image(self.names[row], cells[row]) for row in rows]

    def _read(self) -> pa.ChunkedArray:
        fs, _ = filesystem(self.source)
        with _reading(self.path), pq.ParquetFile(self.path, filesystem=fs) as file:
            return read_row_groups(file, [self.group], [self.column], self.path)[self.column]

    @staticmethod
    def _image(name: str, cell: Any) -> InputImage:
        value = cell.as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        return InputImage(name, encoded) if encoded else InputImage(name, b"", f"{name} contains no image bytes")


def list_row_groups(source: str, infos: Sequence[FileInfo]) -> list[RowGroupShard]:
    """Returns the row groups of parquet files.

    Raises:
        DataError: a file cannot be read, there are no rows, or row names are duplicated or not valid file names.
    """
    shards = [shard for info in infos for shard in _row_groups(source, info)]
    names = iter(result_names([name for shard in shards for name in shard.names]))
    shards = [replace(shard, names=tuple(islice(names, len(shard.names)))) for shard in shards]
    counts = Counter(name for shard in shards for name in shard.names)
    problems = [f"{name!r} occurs {count} times" for name, count in counts.items() if count > 1]
    problems += [f"{name!r} is not a relative path below a folder" for name in counts if not _stays_inside(name)]
    problems += [
        f"{name[:100]!r}... has a part longer than {MAX_NAME_BYTES} bytes" for name in counts if _is_long(name)
    ]
    if problems:
        raise DataError(
            f"{strip_credentials(source)} has row names that cannot be used as file names:{format_list(problems)}"
        )
    if not counts:
        raise DataError(f"{strip_credentials(source)} contains no rows.")
    return shards


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _is_long(name: str) -> bool:
    return any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in PurePosixPath(name).parts)


def _row_groups(source: str, info: FileInfo) -> Iterator[RowGroupShard]:
    fs, _ = filesystem(source)
    with _reading(info.path), pq.ParquetFile(info.path, filesystem=fs) as file:
        columns = file.schema_arrow.names
        if len(set(columns)) < len(columns):
            raise DataError(f"{info.path} has several columns of one name; expected unique names.")
        image_column = next(
            (name for name in IMAGE_COLUMNS if name in columns and _is_image(file.schema_arrow, name)), None
        )
        if image_column is None:
            raise DataError(
                f"{info.path} has no image column; expected one of {', '.join(IMAGE_COLUMNS)} with bytes or structs "
                f"with a field bytes; it has the columns {', '.join(columns)}."
            )
        name_column = next((name for name in NAME_COLUMNS if name in columns), None)
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if name_column is None:
                names = [f"{PurePosixPath(info.path).stem}/{row:07d}" for row in range(first, first + rows)]
            else:
                cells = read_row_groups(file, [group], [name_column], info.path)[name_column].to_pylist()
                if not all(isinstance(cell, str | int) for cell in cells):
                    raise DataError(f"{info.path} has a {name_column} that is neither text nor a number.")
                names = [_normalize_name(str(cell)) for cell in cells]
            first += rows
            yield RowGroupShard(
                source, info.path, group, image_column, tuple(names), f"{info.path} {info.size} {info.mtime_ns} {group}"
            )


def _is_image(schema: pa.Schema, name: str) -> bool:
    dtype = schema.field(name).type
    if pa.types.is_struct(dtype):
        dtype = next((field.type for field in dtype if field.name == "bytes"), None)
    return dtype is not None and (pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


def _normalize_name(name: str) -> str:
    """Returns the only form of a relative path: `./a//b` is `a/b`, because both are one file."""
    return str(PurePosixPath(name)) if _stays_inside(name) else name


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        raise DataError(f"{path} is not readable as parquet ({' '.join(str(error).split())}).") from error
