"""Slices of a split: groups of rows that share a value of a column, a size, or a part of their id."""

import re
from collections.abc import Mapping

from segray.core.errors import DataError
from segray.data.reader import SplitReader

SIZE_SLICE = "size"
UNKNOWN = "-"
"""Slice value of rows without a value in the column."""


Slice = tuple[str, str | None]
"""Name of a slice, and a regular expression for ids; `None` selects the column of that name, or `size`."""


def slice_labels(
    source: SplitReader, slices: Mapping[str, str | None]
) -> tuple[dict[int, str], dict[str, dict[int, str]]]:
    """Returns the ids of all rows by row number, and the value of each row by slice name.

    Args:
        source: reader of the split.
        slices: regular expressions by slice name. The value is the first group of the match in the id, or the complete
            match. `None` selects the column of that name, or `size`, width x height.

    Raises:
        DataError: the column does not exist, the expression is invalid, or it does not match an id.
    """
    columns = [name for name, pattern in slices.items() if pattern is None and name != SIZE_SLICE]
    source.require_label_columns(columns)
    table = source.read_columns(["id", "height", "width", *columns])
    ids = dict(enumerate(table["id"].to_pylist()))
    values = {}
    for name, pattern in slices.items():
        if pattern is not None:
            values[name] = {row: _match_id(name, pattern, id_) for row, id_ in ids.items()}
        elif name == SIZE_SLICE:
            sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
            values[name] = {row: f"{width}x{height}" for row, (width, height) in enumerate(sizes)}
        else:
            values[name] = {
                row: UNKNOWN if value is None else str(value) for row, value in enumerate(table[name].to_pylist())
            }
    return ids, values


def _match_id(name: str, pattern: str, id_: str) -> str:
    try:
        match = re.search(pattern, id_)
    except re.error as error:
        raise DataError(f"slice {name} is {pattern}, which is not a valid regular expression ({error}).") from error
    if match is None:
        raise DataError(f"slice {name}: {pattern} does not match the id {id_}.")
    return str(match[1] if match.re.groups else match[0])
