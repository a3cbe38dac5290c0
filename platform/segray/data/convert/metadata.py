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
    known = {name for sample in samples for name in (sample.id, _bare(sample))}
    strange = [name for name in table if name not in known]
    if strange:
        raise DataError(f"columns {file} has {len(strange)} ids that no image has:{format_list(strange)}")
    found = ((sample, table.get(sample.id, table.get(_bare(sample), {}))) for sample in samples)
    return tuple(replace(sample, columns={**sample.columns, **more}) for sample, more in found)


def _bare(sample: SourceSample) -> str:
    return sample.id.partition("/")[2]


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"columns {file} cannot be read ({error}); expected CSV with a header.") from error
    if any(None in row for row in rows):
        raise DataError(f"columns {file} has more cells in a row than columns; expected as many.")
    names = [name for name in (rows[0] if rows else {}) if name != KEY]
    if not rows or KEY not in rows[0] or not names:
        raise DataError(f"columns {file} has no rows with the column {KEY} and others; expected e.g. id,camera,city.")
    wrong = [name for name in names if not name.isidentifier() or name in RESERVED_COLUMNS]
    if wrong:
        expected = f"expected a word, none of {', '.join(sorted(RESERVED_COLUMNS))}"
        raise DataError(f"columns {file} has a column {wrong[0]!r}; {expected}.")
    twice = [name for name, count in Counter(row[KEY] for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"columns {file} names images more than once:{format_list(twice)}")
    return {row[KEY]: {name: row[name] for name in names if row[name]} for row in rows}
