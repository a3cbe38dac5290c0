"""Hugging Face datasets: parquet files as on the hub, or a folder saved by `datasets`, with image and label structs.

A struct is `{bytes, path}`. If the bytes are missing, the path is resolved relative to the table file. The table file
itself may be a link to any location, because the hub cache consists of such links.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from segray.core.classes import Classes
from segray.core.errors import DataError, is_encodable
from segray.core.parsing import parse_json, summarize_error
from segray.data.manifest import RESERVED_COLUMNS
from segray.data.sources.collector import SampleCollector
from segray.data.sources.files import (
    SourceFile,
    glob_files,
    require_regular_file,
    require_source_dir,
    require_source_file,
    sort_splits,
)
from segray.data.sources.huggingface_tables import (
    ImageCell,
    external_paths,
    group_sizes,
    locate_cell,
    read_cells,
    table_schema,
)
from segray.data.sources.sample import SourceListing, SourceSample

LAYOUT = "<split>-*.parquet (also under data/), or <split>/data-*.arrow as saved by `datasets`"
IMAGES = ("image", "pixel_values", "img")
LABELS = ("label", "annotation", "mask", "labels", "segmentation_mask", "semantic_segmentation")
NAMES = "id2label.json"
PARQUET = re.compile(r"([A-Za-z]\w*?)(-\d.*)?")
VALIDATION = "validation"  # name of the `val` split on the hub
HUB_SPLITS = {"train", VALIDATION, "val", "test"}
BYTES_TYPES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
METADATA_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)


def list_samples(source: str | None) -> SourceListing:
    """Lists the rows of every split; class names come from id2label.json in the folder, if it exists.

    Raises:
        DataError: no table files exist, they belong to several configurations, or have no image or label column.
    """
    root = require_source_dir("huggingface", source, LAYOUT)
    files = _files_by_split(root)
    if not files:
        raise DataError(f"{root} contains no table files; expected {LAYOUT}.")
    collector = SampleCollector(root)
    for split in sort_splits(files):
        _collect(split, files[split], collector)
    return collector.listing(_read_classes(root))


def _files_by_split(root: Path) -> dict[str, list[Path]]:
    """Returns the files of each split, in order."""
    files = defaultdict[str, list[Path]](list)
    configurations = set[Path]()
    for path in sorted([*glob_files(root, "*.parquet"), *glob_files(root, "*/*.parquet")]):
        match = PARQUET.fullmatch(path.stem)
        name = match[1] if match else path.stem
        if path.parent in (root, root / "data"):
            files[name].append(path)
        elif name in HUB_SPLITS and path.parent.name != name:
            files[name].append(path)
            configurations.add(path.parent)
        else:
            files[path.parent.name].append(path)
    for path in sorted([*glob_files(root, "data-*.arrow"), *glob_files(root, "*/data-*.arrow")]):
        files["train" if path.parent == root else path.parent.name].append(path)
    _check_files(root, files, configurations)
    return {"val" if split == VALIDATION else split: paths for split, paths in files.items()}


def _check_files(root: Path, files: dict[str, list[Path]], configurations: set[Path]) -> None:
    if len(configurations) > 1 or any(len({path.parent for path in paths}) > 1 for paths in files.values()):
        folders = sorted({path.parent.name for paths in files.values() for path in paths})
        raise DataError(f"{root} contains several configurations ({', '.join(folders)}); pass one of them as --source.")
    if {"val", VALIDATION} <= files.keys():
        raise DataError(f"{root} contains val and {VALIDATION}; expected one of them; remove the other.")


def _collect(split: str, paths: list[Path], collector: SampleCollector) -> None:
    count = 0
    for path in paths:
        try:
            if not is_encodable(str(path)):
                raise DataError(f"{str(path)!a}: the name is not valid UTF-8; rename it")
            table = _index_table(SourceFile.stat(require_regular_file(path)))
        except OSError as error:
            collector.problems.append(f"{path}: cannot be read ({error.strerror}); expected a table")
            continue
        except DataError as error:
            collector.problems.append(str(error))
            continue
        for row, (cells, columns) in enumerate(zip(table.cells, table.columns, strict=True)):
            name = f"{split}/{count:07d}"
            count += 1
            try:
                image, label = (locate_cell(table.file, row, *cell) for cell in cells)
            except DataError as error:
                collector.problems.append(f"{name}: {error}")
                continue
            collector.samples.append(_sample(split, name, image, label, table.file.size // len(table.cells), columns))


@dataclass(frozen=True)
class TableFile:
    """A table file and the index of its rows.

    Attributes:
        file: table file.
        cells: image and label column of each row, each with the path of an external file or `None`.
        columns: values of the text, integer and boolean columns of each row.
    """

    file: SourceFile
    cells: list[tuple[tuple[str, str | None], tuple[str, str | None]]]
    columns: list[dict[str, str]]


def _index_table(file: SourceFile) -> TableFile:
    columns = [_find_column(file, table_schema(file), names) for names in (IMAGES, LABELS)]
    images, labels = ([(column, path) for path in external_paths(file, column)] for column in columns)
    return TableFile(file, list(zip(images, labels, strict=True)), _metadata_columns(file))


def _metadata_columns(file: SourceFile) -> list[dict[str, str]]:
    """Returns the values of the text, integer and boolean columns of each row."""
    schema = table_schema(file)
    names = [
        name for name in schema.names if _is_metadata_type(schema.field(name).type) and name not in RESERVED_COLUMNS
    ]
    rows = range(sum(group_sizes(file)))
    values = {
        name: [cell for group in range(len(group_sizes(file))) for cell in _read_texts(file, group, name)]
        for name in names
    }
    return [{name: text for name in names if (text := values[name][row]) is not None} for row in rows]


def _is_metadata_type(data_type: pa.DataType) -> bool:
    return any(is_type(data_type) for is_type in METADATA_TYPES)


def _read_texts(file: SourceFile, group: int, name: str) -> list[str | None]:
    texts: list[str | None] = read_cells(file, group, name).cast(pa.string()).to_pylist()
    return texts


def _sample(
    split: str, name: str, image: ImageCell, label: ImageCell, size_bytes: int, columns: dict[str, str]
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


def _find_column(file: SourceFile, schema: pa.Schema, names: tuple[str, ...]) -> str:
    for name in names:
        if name in schema.names and _is_image_struct(schema.field(name).type):
            return name
    raise DataError(
        f"{file.path} has the columns {', '.join(schema.names)}; expected one of {', '.join(names)}, a struct of "
        "bytes and path."
    )


def _is_image_struct(data_type: pa.DataType) -> bool:
    return pa.types.is_struct(data_type) and any(
        field.name == "bytes" and any(is_type(field.type) for is_type in BYTES_TYPES) for field in data_type
    )


def _read_classes(root: Path) -> Classes | None:
    file = root / NAMES
    if not file.exists():
        return None
    try:
        names = {int(key): str(name) for key, name in parse_json(require_source_file(root, file).read_bytes()).items()}
        return Classes.from_names([names[index] for index in range(len(names))])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {summarize_error(error)}"
        raise DataError(f'{file} cannot be used ({reason}); expected {{"0": NAME, ...}}, without gaps.') from error
