"""Hugging Face datasets: parquet files as on the hub, or a folder saved by `datasets`, with image and label structs.

A struct is `{bytes, path}`. If the bytes are missing, the path is resolved relative to the table file. The table file
itself may be a link to any location, because the hub cache consists of such links.
"""

import json
import re
from bisect import bisect_right
from collections import defaultdict
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

from segray.core.classes import Classes
from segray.core.errors import DataError, is_encodable
from segray.data.manifest import RESERVED_COLUMNS
from segray.data.sources.files import SampleCollector, SourceFile, is_junk_file, require_source_dir, sort_splits
from segray.data.sources.sample import SourceListing, SourceSample

LAYOUT = "<split>-*.parquet (also under data/), or <split>/data-*.arrow as saved by `datasets`"
IMAGES = ("image", "pixel_values", "img")
LABELS = ("label", "annotation", "mask", "labels", "segmentation_mask", "semantic_segmentation")
NAMES = "id2label.json"
PARQUET = re.compile(r"([A-Za-z]\w*?)(-\d.*)?")
VALIDATION = "validation"  # name of the `val` split on the hub
HUBS_SPLITS = {"train", VALIDATION, "val", "test"}
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
FACTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
AT_ONCE = 64  # rows of an arrow file that are held in memory at once


def list_samples(source: str | None) -> SourceListing:
    """Lists the rows of every split; class names come from id2label.json in the folder, if it exists.

    Raises:
        DataError: no table files exist, they belong to several configurations, or have no image or label column.
    """
    root = require_source_dir("huggingface", source, LAYOUT)
    files = _files(root)
    if not files:
        raise DataError(f"{root} holds neither; expected {LAYOUT}.")
    collected = SampleCollector(root)
    for split in sort_splits(files):
        _collect(split, files[split], collected)
    return collected.listing(_classes(root / NAMES))


def _files(root: Path) -> dict[str, list[Path]]:
    """Returns the files of each split, in order."""
    found = defaultdict[str, list[Path]](list)
    configurations = set[Path]()
    for path in sorted(path for path in [*root.glob("*.parquet"), *root.glob("*/*.parquet")] if not is_junk_file(path)):
        match = PARQUET.fullmatch(path.stem)
        name = match[1] if match else path.stem
        if path.parent in (root, root / "data"):
            found[name].append(path)
        elif name in HUBS_SPLITS and path.parent.name != name:
            found[name].append(path)
            configurations.add(path.parent)
        else:
            found[path.parent.name].append(path)
    for path in sorted([*root.glob("data-*.arrow"), *root.glob("*/data-*.arrow")]):
        found["train" if path.parent == root else path.parent.name].append(path)
    _check_files(root, found, configurations)
    return {"val" if split == VALIDATION else split: paths for split, paths in found.items()}


def _check_files(root: Path, found: dict[str, list[Path]], configurations: set[Path]) -> None:
    if len(configurations) > 1 or any(len({path.parent for path in paths}) > 1 for paths in found.values()):
        folders = sorted({path.parent.name for paths in found.values() for path in paths})
        raise DataError(f"{root} holds several configurations, {', '.join(folders)}; give one of them as --source.")
    if {"val", VALIDATION} <= found.keys():
        raise DataError(f"{root} holds val and {VALIDATION}; expected one of them; move the other away.")


def _collect(split: str, paths: list[Path], collected: SampleCollector) -> None:
    count = 0
    for path in paths:
        try:
            if not is_encodable(str(path)):
                raise DataError(f"{str(path)!a}: a name that is no UTF-8; rename it")
            cells = _table(SourceFile.stat(path))
        except OSError as error:
            collected.problems.append(f"{path}: cannot be read ({error.strerror}); expected a table")
            continue
        except DataError as error:
            collected.problems.append(str(error))
            continue
        for row, (places, columns) in enumerate(zip(cells.places, cells.columns, strict=True)):
            name = f"{split}/{count:07d}"
            count += 1
            try:
                image, label = (_cell(cells.file, row, *place) for place in places)
            except DataError as error:
                collected.problems.append(f"{name}: {error}")
                continue
            collected.samples.append(_sample(split, name, image, label, cells.file.size // len(cells.places), columns))


@dataclass(frozen=True)
class TableFile:
    """A table file and the index of its rows.

    Attributes:
        file: table file.
        places: image and label column of each row, each with the path of an external file or `None`.
        columns: values of the text, integer and boolean columns of each row.
    """

    file: SourceFile
    places: list[tuple[tuple[str, str | None], tuple[str, str | None]]]
    columns: list[dict[str, str]]


def _table(file: SourceFile) -> TableFile:
    columns = [_column(file, _schema(file), names) for names in (IMAGES, LABELS)]
    images, labels = ([(column, path) for path in _paths(file, column)] for column in columns)
    return TableFile(file, list(zip(images, labels, strict=True)), _facts(file))


def _facts(file: SourceFile) -> list[dict[str, str]]:
    """Returns the values of the text, integer and boolean columns of each row."""
    schema = _schema(file)
    names = [name for name in schema.names if _is_fact(schema.field(name).type) and name not in RESERVED_COLUMNS]
    rows = range(sum(_groups(file)))
    values = {
        name: [cell for group in range(len(_groups(file))) for cell in _texts(file, group, name)] for name in names
    }
    return [{name: text for name in names if (text := values[name][row]) is not None} for row in rows]


def _is_fact(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in FACTS)


def _texts(file: SourceFile, group: int, name: str) -> list[str | None]:
    found: list[str | None] = _cells(file, group, name).cast(pa.string()).to_pylist()
    return found


def _sample(
    split: str, name: str, image: "ImageCell", label: "ImageCell", size_bytes: int, columns: dict[str, str]
) -> SourceSample:
    return SourceSample(
        split=split,
        id=name,
        image=str(image),
        mask=str(label),
        size_bytes=size_bytes,
        read_image=image.read,
        read_mask=label.read,
        version=f"{image!r}\n{label!r}",
        columns=columns,
    )


def _column(file: SourceFile, schema: pa.Schema, wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in schema.names and _is_picture(schema.field(name).type):
            return name
    raise DataError(
        f"{file.path} has the columns {', '.join(schema.names)}; expected one of {', '.join(wanted)}, a struct of "
        "bytes and path."
    )


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and any(is_kind(field.type) for is_kind in BYTES) for field in kind
    )


def _classes(file: Path) -> Classes | None:
    if not file.exists():
        return None
    try:
        names = {int(key): str(name) for key, name in json.loads(file.read_bytes()).items()}
        return Classes.from_names([names[index] for index in range(len(names))])
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f'{file} cannot be used ({error!r}); expected {{"0": NAME, ...}}, without gaps.') from error


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
        ends = list(accumulate(_groups(self.file)))
        group = bisect_right(ends, self.row)
        cell = _cells(self.file, group, self.column)[self.row - (ends[group - 1] if group else 0)].as_py()
        if not cell["bytes"]:
            raise DataError(f"{self} is empty")
        return bytes(cell["bytes"])


def _cell(file: SourceFile, row: int, column: str, path: str | None) -> ImageCell:
    """Returns a cell; raises DataError if it is empty or its path does not lead to a permitted file."""
    if path is None:
        return ImageCell(file, row, column, None)
    place = f"{file.path}, row {row}, column {column}"
    if not path:
        raise DataError(f"{place} is empty")
    folder = Path(file.path).parent.resolve()
    try:
        beside = (folder / path).resolve()
        if beside.is_relative_to(folder):
            return ImageCell(file, row, column, SourceFile.stat(beside))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{place} holds no bytes, and {path!r} beside it cannot be read ({error})") from error
    raise DataError(f"{place} holds no bytes, and its path {path!r} leaves the folder; copy the image into it")


def _paths(file: SourceFile, column: str) -> list[str | None]:
    """Returns the path of each cell without bytes, and `None` for each cell with bytes.

    If all cells have bytes, no paths are read.
    """
    found: list[str | None] = []
    for group, (rows, is_full) in enumerate(zip(_groups(file), _full_groups(file, column), strict=True)):
        if is_full:
            found += [None] * rows
        else:
            cells = _cells(file, group, column)
            lacks = pc.is_null(pc.struct_field(cells, "bytes")).to_pylist()
            paths = pc.struct_field(cells, "path").to_pylist() if _has_paths(cells.type) else [""] * rows
            found += [str(path or "") if empty else None for path, empty in zip(paths, lacks, strict=True)]
    return found


def _has_paths(kind: pa.DataType) -> bool:
    return any(field.name == "path" for field in kind)


@lru_cache(maxsize=64)
def _full_groups(file: SourceFile, column: str) -> tuple[bool, ...]:
    """Returns for each row group whether all cells are known to have bytes, without reading them."""
    with _readable(file):
        if not _is_parquet(file):
            table = _arrow(file)[column]
            is_full = table.null_count == 0 and pc.struct_field(table, "bytes").null_count == 0
            return (is_full,) * len(_groups(file))
        metadata = pq.read_metadata(file.path)
        place = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(f"{column}.bytes")
        known = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    return tuple(bool(one and one.has_null_count and one.null_count == 0) for one in known)


@lru_cache(maxsize=64)
def _schema(file: SourceFile) -> pa.Schema:
    with _readable(file):
        return pq.read_schema(file.path) if _is_parquet(file) else _arrow(file).schema


@lru_cache(maxsize=64)
def _groups(file: SourceFile) -> tuple[int, ...]:
    """Returns the number of rows in each row group; arrow files are divided into groups of AT_ONCE rows."""
    with _readable(file):
        if _is_parquet(file):
            metadata = pq.read_metadata(file.path)
            return tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        rows = _arrow(file).num_rows
        return tuple(min(AT_ONCE, rows - start) for start in range(0, rows, AT_ONCE))


@lru_cache(maxsize=2)  # images and labels of one row group; rows are read in order
def _cells(file: SourceFile, group: int, column: str) -> pa.ChunkedArray:
    with _readable(file):
        if SourceFile.stat(Path(file.path)) != file:
            raise DataError(f"{file.path} has changed since the conversion began; convert again.")
        if _is_parquet(file):
            with pq.ParquetFile(file.path) as opened:
                table = opened.read_row_group(group, columns=[column])
        else:
            table = _arrow(file).select([column]).slice(group * AT_ONCE, AT_ONCE)
    return table[column]


def _arrow(file: SourceFile) -> pa.Table:
    """Opens a table saved by `datasets` as a memory map."""
    with pa.memory_map(file.path) as mapped:
        return pa.ipc.open_stream(mapped).read_all()


def _is_parquet(file: SourceFile) -> bool:
    return file.path.endswith(".parquet")


@contextmanager
def _readable(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, ValueError) as error:  # damaged file
        raise DataError(f"{file.path} cannot be read ({error}); fetch it again.") from error
