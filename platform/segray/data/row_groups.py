"""Reading of row groups of a parquet file, with a limit of the memory that a small file can expand to."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.errors import DataError

MAX_BYTES = 2**31
"""Maximum size in memory of the row groups that are read together. segray writes row groups of about 4 MiB."""
MAX_BATCH_ROWS = 1024
VALUE_BYTES = 8
"""Size in memory of a fixed-width value, however small its encoded form is."""
_STORED_IN_FULL = {"PLAIN", "RLE"}


def read_row_groups(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str] | None, name: str) -> pa.Table:
    """Reads columns of row groups.

    Args:
        file: opened file.
        groups: indices of the row groups.
        columns: names of the columns, or `None` for all.
        name: name of the file for error messages.

    Raises:
        DataError: the rows take more than MAX_BYTES in memory.
    """
    chunks = [
        chunk
        for group in map(file.metadata.row_group, groups)
        for chunk in map(group.column, range(group.num_columns))
        if columns is None or chunk.path_in_schema.partition(".")[0] in columns
    ]
    size = sum(max(chunk.total_uncompressed_size, VALUE_BYTES * chunk.num_values) for chunk in chunks)
    _require_small(size, name)
    if all(set(chunk.encodings) <= _STORED_IN_FULL for chunk in chunks):
        return file.read_row_groups(groups, columns=columns, use_threads=False)
    # Dictionaries and shared prefixes repeat values: the size is known only after decoding. A batch of this number of
    # rows is within the limit.
    batch_rows = max(1, min(MAX_BATCH_ROWS, MAX_BYTES // max(1, size)))
    batches, size = list[pa.RecordBatch](), 0
    for batch in file.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False):
        size += batch.nbytes
        _require_small(size, name)
        batches.append(batch)
    return pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table().select(columns)


def _require_small(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{name} has row groups that take more than {MAX_BYTES} bytes in memory; write it with smaller row groups."
        )
