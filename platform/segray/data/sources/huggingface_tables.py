"""Cells of Hugging Face table files: image structs in parquet files, or in arrow files saved by `datasets`."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.core.parsing import summarize_error
from segray.data.row_groups import read_row_groups
from segray.data.sources.files import SourceFile, require_regular_file

ARROW_GROUP_ROWS = 64
"""Rows of an arrow file that are held in memory together."""


@dataclass(frozen=True)
class ImageCell:
    """Image or label cell of a table.

    Attributes:
        file: parquet or arrow file.
        row: row number in the file, from 0.
        column: name of the column.
        beside: external file that holds the bytes, or `None` if the table holds them.
    """

    file: SourceFile
    row: int
    column: str
    beside: SourceFile | None

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}, column {self.column}"

    def read(self) -> bytes:
        """Reads the bytes of the cell.

        Raises:
            DataError: the file cannot be read or has changed, or the cell is empty.
        """
        if self.beside is not None:
            return self.beside.read()
        ends = list(accumulate(group_sizes(self.file)))
        group = bisect_right(ends, self.row)
        cell = read_cells(self.file, group, self.column)[self.row - (ends[group - 1] if group else 0)].as_py()
        if not cell["bytes"]:
            raise DataError(f"{self} is empty")
        return bytes(cell["bytes"])


def locate_cell(file: SourceFile, row: int, column: str, path: str | None) -> ImageCell:
    """Returns a cell; raises DataError if it is empty or its path does not lead to a permitted file."""
    if path is None:
        return ImageCell(file, row, column, None)
    cell = f"{file.path}, row {row}, column {column}"
    if not path:
        raise DataError(f"{cell} is empty")
    folder = Path(file.path).parent.resolve()
    try:
        external = (folder / path).resolve()
        if external.is_relative_to(folder):
            return ImageCell(file, row, column, SourceFile.stat(require_regular_file(external)))
    except (OSError, RuntimeError, ValueError, DataError) as error:
        raise DataError(f"{cell} has no bytes, and its file {path!r} cannot be read ({error})") from error
    raise DataError(f"{cell} has no bytes, and its path {path!r} is outside the folder; copy the image into it")


def external_paths(file: SourceFile, column: str) -> list[str | None]:
    """Returns the path of each cell without bytes, and `None` for each cell with bytes.

    If all cells have bytes, no paths are read.
    """
    external: list[str | None] = []
    for group, (rows, is_full) in enumerate(zip(group_sizes(file), _has_all_bytes(file, column), strict=True)):
        if is_full:
            external += [None] * rows
        else:
            cells = read_cells(file, group, column)
            is_missing = pc.is_null(pc.struct_field(cells, "bytes")).to_pylist()
            paths = pc.struct_field(cells, "path").to_pylist() if _has_paths(cells.type) else [""] * rows
            external += [str(path or "") if missing else None for path, missing in zip(paths, is_missing, strict=True)]
    return external


def _has_paths(struct: pa.DataType) -> bool:
    return any(field.name == "path" for field in struct)


@lru_cache(maxsize=64)
def _has_all_bytes(file: SourceFile, column: str) -> tuple[bool, ...]:
    """Returns for each row group whether all cells are known to have bytes, without reading them."""
    with _translate_read_errors(file):
        if not _is_parquet(file):
            table = _open_arrow(file)[column]
            is_full = table.null_count == 0 and pc.struct_field(table, "bytes").null_count == 0
            return (is_full,) * len(group_sizes(file))
        metadata = pq.read_metadata(file.path)
        paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        index = paths.index(f"{column}.bytes")
        statistics = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
    return tuple(bool(column and column.has_null_count and column.null_count == 0) for column in statistics)


@lru_cache(maxsize=64)
def table_schema(file: SourceFile) -> pa.Schema:
    """Returns the schema of a table file.

    Raises:
        DataError: the file cannot be read, or two columns have the same name.
    """
    with _translate_read_errors(file):
        schema = pq.read_schema(file.path) if _is_parquet(file) else _open_arrow(file).schema
    duplicates = [name for name, count in Counter(schema.names).items() if count > 1]
    if duplicates:
        raise DataError(f"{file.path} has several columns named {duplicates[0]!r}; expected unique names.")
    return schema


@lru_cache(maxsize=64)
def group_sizes(file: SourceFile) -> tuple[int, ...]:
    """Returns the number of rows in each row group; arrow files are divided into groups of ARROW_GROUP_ROWS rows."""
    with _translate_read_errors(file):
        if _is_parquet(file):
            metadata = pq.read_metadata(file.path)
            return tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        rows = _open_arrow(file).num_rows
        return tuple(min(ARROW_GROUP_ROWS, rows - start) for start in range(0, rows, ARROW_GROUP_ROWS))


@lru_cache(maxsize=2)  # images and labels of one row group; rows are read in order
def read_cells(file: SourceFile, group: int, column: str) -> pa.ChunkedArray:
    """Reads a column of one row group.

    Raises:
        DataError: the file cannot be read, or has changed since it was listed.
    """
    with _translate_read_errors(file):
        if SourceFile.stat(Path(file.path)) != file:
            raise DataError(f"{file.path} has changed since the conversion started; convert again.")
        if _is_parquet(file):
            with pq.ParquetFile(file.path) as opened:
                table = read_row_groups(opened, [group], [column], file.path)
        else:
            table = _open_arrow(file).select([column]).slice(group * ARROW_GROUP_ROWS, ARROW_GROUP_ROWS)
    return table[column]


@lru_cache(maxsize=64)  # a memory map, which takes no memory of its own
def _open_arrow(file: SourceFile) -> pa.Table:
    """Opens a table saved by `datasets` as a memory map.

    All offsets are validated: Arrow does not check them on access, and damaged ones end the process.
    """
    with pa.memory_map(file.path) as mapped:
        table = pa.ipc.open_stream(mapped).read_all()
    table.validate(full=True)
    return table


def _is_parquet(file: SourceFile) -> bool:
    return file.path.endswith(".parquet")


@contextmanager
def _translate_read_errors(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, ValueError) as error:  # damaged file
        if is_out_of_memory(error):
            raise
        raise DataError(f"{file.path} cannot be read ({summarize_error(error)}); download it again.") from error
