"""Additional dataset columns with metadata of the images, such as camera or city, for evaluation by subset."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from segray.core.errors import DataError, format_list
from segray.data.manifest import COLUMNS, RESERVED_COLUMNS
from segray.data.sources.sample import SourceSample

KEY = "id"


def column_names(samples: Sequence[SourceSample]) -> tuple[str, ...]:
    """Returns the names of all additional columns that occur in the samples."""
    return tuple(sorted({name for sample in samples for name in sample.columns}))


def shard_schema(names: Sequence[str]) -> pa.Schema:
    """Returns the schema of a shard with additional nullable text columns."""
    return pa.schema([*COLUMNS, *(pa.field(name, pa.string()) for name in names)])


def add_columns(samples: Sequence[SourceSample], file: Path) -> tuple[SourceSample, ...]:
    """Adds the columns of a CSV file to the samples, matched by id with or without the split.

    Raises:
        DataError: the file cannot be read, has no column `id`, names unknown images, or names an image twice.
    """
    table = _read(file)
    sample_ids = {name for sample in samples for name in (sample.id, _id_without_split(sample))}
    unknown = [name for name in table if name not in sample_ids]
    if unknown:
        raise DataError(f"columns {file} has {len(unknown)} unknown ids:{format_list(unknown)}")
    extra_columns = (table.get(sample.id, table.get(_id_without_split(sample), {})) for sample in samples)
    return tuple(
        replace(sample, columns={**sample.columns, **extra})
        for sample, extra in zip(samples, extra_columns, strict=True)
    )


def _id_without_split(sample: SourceSample) -> str:
    return sample.id.partition("/")[2]


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"columns {file} cannot be read ({error}); expected CSV with a header.") from error
    if any(None in row for row in rows):
        raise DataError(f"columns {file} has a row with more cells than columns.")
    names = [name for name in (rows[0] if rows else {}) if name != KEY]
    if not rows or KEY not in rows[0] or not names:
        raise DataError(
            f"columns {file} has no rows, no column {KEY} or no other column; expected e.g. id,camera,city."
        )
    invalid = [name for name in names if not name.isidentifier() or name in RESERVED_COLUMNS]
    if invalid:
        reserved = ", ".join(sorted(RESERVED_COLUMNS))
        raise DataError(f"columns {file} has the column {invalid[0]!r}; expected an identifier other than {reserved}.")
    duplicates = [name for name, count in Counter(row[KEY] for row in rows).items() if count > 1]
    if duplicates:
        raise DataError(f"columns {file} has {len(duplicates)} duplicate ids:{format_list(duplicates)}")
    return {row[KEY]: {name: row[name] for name in names if row[name]} for row in rows}
