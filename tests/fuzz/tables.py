"""Mutations of Arrow tables, and of the parquet and arrow files that hold them."""

import io
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from .images import hostile_image, seed_images
from .mutations import mutate_bytes

TYPES = (
    *(pa.string(), pa.binary(), pa.large_binary(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64()),
    *(
        pa.null(),
        pa.bool_(),
        pa.list_(pa.int64()),
        pa.list_(pa.string()),
        pa.date32(),
        pa.timestamp("ns"),
        pa.time64("ns"),
    ),
    *(pa.decimal128(38, 2), pa.dictionary(pa.int32(), pa.string()), pa.map_(pa.string(), pa.int32()), pa.duration("s")),
    *(pa.struct([]), pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.struct([("bytes", pa.int32())])),
)
TEXTS = (
    "",
    "..",
    "../../outside/secret",
    "/etc/passwd",
    "a\0b",
    "x" * 5_000,
    "a/" * 500,
    ".unfinished/x",
    "é" * 300,
    "x\ny",
)


def random_column(draw: Random, rows: int, data_type: pa.DataType) -> pa.Array:
    """Returns a column of a type: values that the type accepts, or nulls."""
    values: list[Any] = [None] * rows
    if pa.types.is_string(data_type):
        values = [draw.choice((None, *TEXTS)) for _ in range(rows)]
    elif pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type):
        values = [draw.choice((None, b"", hostile_image(draw, seed_images()))) for _ in range(rows)]
    elif pa.types.is_integer(data_type):
        values = [
            draw.choice((None, 0, 1, 127, -1 if pa.types.is_signed_integer(data_type) else 2)) for _ in range(rows)
        ]
    elif pa.types.is_floating(data_type):
        values = [draw.choice((None, 0.0, float("nan"), float("inf"))) for _ in range(rows)]
    elif data_type == pa.list_(pa.int64()):
        values = [draw.choice((None, [], [1, 2], [-1] * 3, [2**62] * 3, [None])) for _ in range(rows)]
    elif pa.types.is_struct(data_type) and data_type.num_fields == 2:
        cells = ({"bytes": b"", "path": ""}, {"bytes": None, "path": draw.choice(TEXTS)}, None)
        values = [draw.choice(cells) for _ in range(rows)]
    try:
        return pa.array(values, data_type)
    except pa.ArrowInvalid:  # the items of some types cannot be null
        return pa.nulls(rows, data_type)


def mutate_table(draw: Random, table: pa.Table) -> pa.Table:
    """Replaces, removes, renames, repeats or reorders columns or rows."""
    for _ in range(draw.choice((1, 1, 2))):
        index = draw.randrange(table.num_columns)
        name = table.column_names[index]
        action = draw.randrange(8)
        if action == 0 and table.num_columns > 1:
            table = table.remove_column(index)
        elif action == 1:
            other = draw.choice([*table.column_names, "", "a\0b", "image", "row", "x" * 1000])
            table = table.rename_columns([other if column == name else column for column in table.column_names])
        elif action == 2:
            table = table.append_column(
                draw.choice((name, "extra", "error")), random_column(draw, len(table), pa.string())
            )
        elif action == 3:
            table = table.slice(0, draw.choice((0, 1, len(table))))
        elif action == 4:
            table = pa.concat_tables([table] * draw.choice((2, 3)))
        elif action == 5:
            table = _replace_cells(draw, table, index)
        else:
            table = table.set_column(index, name, random_column(draw, len(table), draw.choice(TYPES)))
    return table


def _replace_cells(draw: Random, table: pa.Table, index: int) -> pa.Table:
    """Replaces some cells of a column by values of the same type or null."""
    field = table.schema.field(index)
    values = table.column(index).to_pylist()
    others = random_column(draw, len(table), field.type).to_pylist()
    mixed = [draw.choice(pair) for pair in zip(values, others, strict=True)]
    return table.set_column(index, pa.field(field.name, field.type), pa.array(mixed, field.type))


def write_parquet(draw: Random, table: pa.Table) -> bytes:
    """Returns a parquet file. A struct without fields, which the format does not have, becomes a column of nulls."""
    for index, field in enumerate(table.schema):
        if pa.types.is_struct(field.type) and not field.type.num_fields:
            table = table.set_column(index, field.name, pa.nulls(len(table)))
    buffer = io.BytesIO()
    options: dict[str, Any] = {"compression": draw.choice(("none", "none", "snappy", "zstd", "gzip"))}
    options |= {"use_dictionary": draw.random() < 0.5, "write_page_checksum": draw.random() < 0.5}
    options |= {"data_page_version": draw.choice(("1.0", "2.0")), "row_group_size": draw.choice((1, 2, 1000))}
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def write_arrow(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def edit_footer(draw: Random, data: bytes) -> bytes:
    """Changes bytes of a parquet footer, or the length of the footer."""
    length = int.from_bytes(data[-8:-4], "little")
    start = max(4, len(data) - 8 - length)
    if draw.random() < 0.2:
        return data[:-8] + draw.choice((0, length - 1, length + 1, 2**31, 2**32 - 1)).to_bytes(4, "little") + data[-4:]
    return data[:start] + mutate_bytes(draw, data[start:-8]) + data[-8:]


def hostile_table_file(draw: Random, table: pa.Table, suffix: str) -> bytes:
    """Returns the bytes of a table file with another schema, other values, or damaged bytes."""
    choice = draw.random()
    if choice < 0.6:
        table = mutate_table(draw, table)
    data = write_arrow(table) if suffix == ".arrow" else write_parquet(draw, table)
    if choice >= 0.8 and suffix == ".parquet":
        return edit_footer(draw, data)
    return mutate_bytes(draw, data) if choice >= 0.6 else data
