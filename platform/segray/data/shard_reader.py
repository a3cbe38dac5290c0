"""Reading of one parquet shard, which is checked against the manifest.

This module imports only what a read needs, because every process that runs read tasks loads it.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import DataError
from segray.data import manifest
from segray.data.manifest import Shard
from segray.data.row_groups import read_row_groups
from segray.data.storage import content_hash, credentials_hint, display_path, filesystem, one_line


def read_shard(root: str, shard: Shard, groups: list[int], columns: list[str]) -> pa.Table:
    """Reads columns of the given row groups of one shard.

    Raises:
        DataError: the shard is missing, damaged or differs from the manifest.
    """
    with _open(root, shard) as file:
        _check_row_groups(root, shard, file)
        table = read_row_groups(file, groups, columns, f"shard {display_path(root, shard.path)}")
    _check_columns(root, shard, table, columns)
    return table


def read_schema(root: str, shard: Shard) -> pa.Schema:
    """Reads the schema of a shard.

    Raises:
        DataError: the shard is missing or damaged.
    """
    with _open(root, shard) as file:
        return file.schema_arrow


@contextmanager
def _open(root: str, shard: Shard) -> Iterator[pq.ParquetFile]:
    """Opens a shard and converts errors of opening and reading to DataError."""
    fs, path = filesystem(root)
    try:
        with open_shard(fs, f"{path}/{shard.path}") as file:
            yield file
    except FileNotFoundError as error:
        name = display_path(root, shard.path)
        if fs.get_file_info(f"{path}/{manifest.MANIFEST}").type == FileType.NotFound:
            raise DataError(
                f"shard {name} does not exist on {platform.node()}, nor does the manifest of its dataset; expected a "
                "dataset that all nodes can read."
            ) from error
        raise DataError(f"shard {name} was deleted after the run started.") from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if is_out_of_memory(error):  # the shard is not at fault
            raise
        hint = credentials_hint(root) if "://" in root else "; convert the dataset again."
        raise DataError(f"shard {display_path(root, shard.path)} cannot be read ({one_line(error)}){hint}") from error


@lru_cache(maxsize=1024)
def check_shard_digests(root: str, shard: Shard) -> None:
    """Checks the row digests of a shard against the manifest; the result is cached per process.

    Raises:
        DataError: the digests differ.
    """
    groups = list(range(len(shard.row_groups)))
    digests = read_shard(root, shard, groups, ["digest"])["digest"].to_pylist()
    if content_hash(*(digest.encode() for digest in digests)) != shard.digest:
        raise DataError(
            f"shard {display_path(root, shard.path)} has changed: its rows differ from the manifest; convert "
            "the dataset again."
        )


def open_shard(fs: pyarrow.fs.FileSystem, path: str) -> pq.ParquetFile:
    """Opens a parquet file. Damaged pages are detected when they are read."""
    return pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True, pre_buffer=True)


def _check_row_groups(root: str, shard: Shard, file: pq.ParquetFile) -> None:
    """Checks the row group sizes in the footer of a shard, to detect a shard that was replaced.

    Raises:
        DataError: the row groups differ from the manifest.
    """
    sizes = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
    if sizes != shard.row_groups:
        raise DataError(
            f"shard {display_path(root, shard.path)} has changed: its row groups have {_format_sizes(sizes)} rows; "
            f"expected {_format_sizes(shard.row_groups)}; convert the dataset again."
        )


def _check_columns(root: str, shard: Shard, table: pa.Table, columns: list[str]) -> None:
    """Checks types and null values of the columns that every dataset has, and the encoding of all text.

    Raises:
        DataError: a column is missing, has another type, contains null, or contains text that is not UTF-8.
    """
    name = display_path(root, shard.path)
    for field in (manifest.COLUMNS.field(column) for column in columns if column in manifest.COLUMNS.names):
        if (count := table.column_names.count(field.name)) != 1:
            raise DataError(f"shard {name} has {count} columns {field.name}; expected one; convert the dataset again.")
        column = table[field.name]
        if column.type != field.type or column.null_count:
            found = "null" if column.type == field.type else str(column.type)
            expected = f"expected {field.type}; convert the dataset again."
            raise DataError(f"shard {name} has {found} in the column {field.name}; {expected}")
    for column in table.column_names:
        if pa.types.is_string(table[column].type) or pa.types.is_large_string(table[column].type):
            try:
                table[column].validate(full=True)
            except pa.ArrowInvalid as error:
                text = f"has text that is not UTF-8 in the column {column}"
                raise DataError(f"shard {name} {text}; convert the dataset again.") from error


def _format_sizes(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:4])) + (", ..." if len(sizes) > 4 else "")
